#include "kernels/communicator/memory_work.h"

#include <algorithm>
#include <cstring>

namespace whale {
namespace {

// A block of one rank's result is written to all ranks while it is still in the first-level cache.
constexpr int64_t kBlockBytes = 16 << 10;

const char* In(const CollectiveCall& call, size_t piece, int64_t byte) {
  return static_cast<const char*>(call.pieces[piece].in) + byte;
}

char* Out(const CollectiveCall& call, size_t piece, int64_t byte) {
  return static_cast<char*>(call.pieces[piece].out) + byte;
}

void Copy(char* to, const char* from, int64_t bytes) {
  if (to != from) std::memcpy(to, from, bytes);
}

// A block: `count` elements of one piece, from `begin` on, which in an all-gather or reduce-scatter is counted within the
// part of the rank at `place`.
struct Block {
  size_t piece;
  size_t place;
  int64_t part_begin;  // of this part in a buffer of all parts
  int64_t begin;
  int64_t count;
  int64_t piece_count;
  int64_t element_bytes;

  int64_t bytes() const { return count * element_bytes; }
  int64_t offset() const { return begin * element_bytes; }
  // Where the block lies in a buffer of all parts.
  int64_t offset_in_all() const { return (part_begin + begin) * element_bytes; }
  // The same of the equal parts of an all-to-all, of which a block has as much each.
  int64_t offset_in(size_t part) const { return (static_cast<int64_t>(part) * piece_count + begin) * element_bytes; }
};

void AllReduceBlock(const Calls& calls, const Block& block, std::vector<const void*>* inputs) {
  for (size_t place = 0; place < calls.size(); ++place) {
    (*inputs)[place] = In(calls[place], block.piece, block.offset());
  }
  char* first = Out(calls[0], block.piece, block.offset());
  Reduce(calls[0].arithmetic, *inputs, block.count, first);
  for (size_t place = 1; place < calls.size(); ++place) {
    Copy(Out(calls[place], block.piece, block.offset()), first, block.bytes());
  }
}

void ReduceScatterBlock(const Calls& calls, const Block& block, std::vector<const void*>* inputs) {
  for (size_t place = 0; place < calls.size(); ++place) {
    (*inputs)[place] = In(calls[place], block.piece, block.offset_in_all());
  }
  Reduce(calls[0].arithmetic, *inputs, block.count, Out(calls[block.place], block.piece, block.offset()));
}

void AllGatherBlock(const Calls& calls, const Block& block) {
  const char* in = In(calls[block.place], block.piece, block.offset());
  for (const CollectiveCall& to : calls) Copy(Out(to, block.piece, block.offset_in_all()), in, block.bytes());
}

// Two ranks swap: both blocks are read before either is written, since each may be replaced in place by the other.
void AllToAllBlock(const Calls& calls, const Block& block) {
  char kept[kBlockBytes];
  for (size_t a = 0; a < calls.size(); ++a) {
    Copy(Out(calls[a], block.piece, block.offset_in(a)), In(calls[a], block.piece, block.offset_in(a)), block.bytes());
    for (size_t b = a + 1; b < calls.size(); ++b) {
      std::memcpy(kept, In(calls[a], block.piece, block.offset_in(b)), block.bytes());
      Copy(Out(calls[a], block.piece, block.offset_in(b)), In(calls[b], block.piece, block.offset_in(a)), block.bytes());
      Copy(Out(calls[b], block.piece, block.offset_in(a)), kept, block.bytes());
    }
  }
}

void BroadcastBlock(const Calls& calls, const Block& block) {
  const char* in = In(calls[calls[0].root], block.piece, block.offset());
  for (const CollectiveCall& to : calls) Copy(Out(to, block.piece, block.offset()), in, block.bytes());
}

void DoBlock(const Calls& calls, const Block& block, std::vector<const void*>* inputs) {
  switch (calls[0].collective) {
    case Collective::kAllReduce:
      return AllReduceBlock(calls, block, inputs);
    case Collective::kReduceScatter:
      return ReduceScatterBlock(calls, block, inputs);
    case Collective::kAllGather:
      return AllGatherBlock(calls, block);
    case Collective::kAllToAll:
      return AllToAllBlock(calls, block);
    case Collective::kBroadcast:
      return BroadcastBlock(calls, block);
    case Collective::kBarrier:
      return;
  }
}

bool HasParts(const CollectiveCall& call) {
  return call.collective == Collective::kReduceScatter || call.collective == Collective::kAllGather;
}

}  // namespace

int64_t WorkElements(const Calls& calls) {
  int64_t elements = 0;
  const size_t parts = HasParts(calls[0]) ? calls.size() : 1;
  for (size_t piece = 0; piece < calls[0].pieces.size(); ++piece) {
    for (size_t part = 0; part < parts; ++part) {
      elements += RowsOf(calls[0], part, piece) * calls[0].pieces[piece].count;
    }
  }
  return elements;
}

int64_t BytesPerElement(const Calls& calls) {
  const int64_t ranks = static_cast<int64_t>(calls.size());
  const bool among_all = calls[0].collective == Collective::kAllToAll;
  return static_cast<int64_t>(SizeOf(calls[0].arithmetic.type)) * 2 * ranks * (among_all ? ranks : 1);
}

void DoWork(const Calls& calls, int64_t begin, int64_t end) {
  const int64_t element_bytes = static_cast<int64_t>(SizeOf(calls[0].arithmetic.type));
  const int64_t block_count = kBlockBytes / element_bytes;
  const size_t parts = HasParts(calls[0]) ? calls.size() : 1;
  std::vector<const void*> inputs(calls.size());
  int64_t done = 0;  // the elements before the part
  for (size_t piece = 0; piece < calls[0].pieces.size() && done < end; ++piece) {
    const int64_t piece_count = calls[0].pieces[piece].count;
    const int64_t piece_begin = done;
    for (size_t part = 0; part < parts; ++part) {
      const int64_t count = RowsOf(calls[0], part, piece) * piece_count;
      const int64_t stop = std::min(end - done, count);
      for (int64_t at = std::max<int64_t>(begin - done, 0); at < stop; at += block_count) {
        const int64_t length = std::min(block_count, stop - at);
        DoBlock(calls, {piece, part, done - piece_begin, at, length, piece_count, element_bytes}, &inputs);
      }
      done += count;
    }
  }
}

}  // namespace whale
