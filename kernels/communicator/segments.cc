#include "kernels/communicator/segments.h"

#include <algorithm>
#include <cstring>

namespace whale {
namespace {

// Up to here a copy costs less than a message.
constexpr int64_t kSmallBytes = 32 << 10;
constexpr int64_t kShortestSegment = 64 << 10;

void CutLarge(const Span& span, int64_t element_bytes, int64_t segment_bytes, std::vector<Segment>* segments) {
  const int64_t elements = span.bytes / element_bytes;
  const int64_t most = std::max<int64_t>(segment_bytes / element_bytes, 1);
  const int64_t parts = (elements + most - 1) / most;
  for (int64_t k = 0; k < parts; ++k) {
    const int64_t begin = elements * k / parts * element_bytes;
    const int64_t end = elements * (k + 1) / parts * element_bytes;
    segments->push_back({{{span.in == nullptr ? nullptr : span.in + begin,
                           span.out == nullptr ? nullptr : span.out + begin, end - begin}},
                         end - begin});
  }
}

}  // namespace

std::vector<Segment> CutIntoSegments(const std::vector<Span>& spans, int64_t element_bytes, int64_t segment_bytes) {
  segment_bytes = std::min(segment_bytes, Blocks::kBytes);
  std::vector<Segment> segments;
  Segment bucket;
  for (const Span& span : spans) {
    if (span.bytes == 0) continue;
    if (span.bytes > std::min(kSmallBytes, segment_bytes)) {
      CutLarge(span, element_bytes, segment_bytes, &segments);
      continue;
    }
    if (bucket.bytes + span.bytes > segment_bytes) {
      segments.push_back(std::move(bucket));
      bucket = Segment();
    }
    bucket.spans.push_back(span);
    bucket.bytes += span.bytes;
  }
  if (bucket.bytes > 0) segments.push_back(std::move(bucket));
  return segments;
}

int64_t SegmentBytes(int64_t total_bytes, int64_t parts) {
  constexpr int64_t kSegmentsPerRank = 2;
  const int64_t bytes = total_bytes / (parts * kSegmentsPerRank);
  return std::min(std::max(bytes, kShortestSegment), Blocks::kBytes);
}

const char* PackedInput(const Segment& segment, Blocks* blocks, Blocks::Block* block) {
  if (!segment.packed()) return segment.spans[0].in;
  *block = blocks->Take();
  char* to = block->get();
  for (const Span& span : segment.spans) {
    std::memcpy(to, span.in, span.bytes);
    to += span.bytes;
  }
  return block->get();
}

char* PlaceForOutput(const Segment& segment, Blocks* blocks, Blocks::Block* block) {
  if (!segment.packed()) return segment.spans[0].out;
  *block = blocks->Take();
  return block->get();
}

void Unpack(const Segment& segment, const Blocks::Block& block) {
  if (!segment.packed()) return;
  const char* from = block.get();
  for (const Span& span : segment.spans) {
    std::memcpy(span.out, from, span.bytes);
    from += span.bytes;
  }
}

}  // namespace whale
