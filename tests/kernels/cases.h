// All collectives against a naive reference, as a script that every rank runs: threads of one process, or processes.

#ifndef WHALE_TESTS_KERNELS_CASES_H_
#define WHALE_TESTS_KERNELS_CASES_H_

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/communicator/half.h"
#include "kernels/communicator/offer.h"
#include "tests/kernels/checks.h"

namespace whale {

inline void Put(DataType type, char* buffer, int64_t i, double value) {
  auto put = [&](auto typed) { std::memcpy(buffer + i * static_cast<int64_t>(sizeof(typed)), &typed, sizeof(typed)); };
  switch (type) {
    case DataType::kFloat16:
      return put(ToFloat16(static_cast<float>(value)));
    case DataType::kBFloat16:
      return put(ToBFloat16(static_cast<float>(value)));
    case DataType::kFloat32:
      return put(static_cast<float>(value));
    case DataType::kFloat64:
      return put(value);
    case DataType::kInt32:
      return put(static_cast<int32_t>(value));
    case DataType::kInt64:
      return put(static_cast<int64_t>(value));
    case DataType::kBool:
      return put(static_cast<char>(value != 0));
    case DataType::kBytes:
    case DataType::kStrings:
      return put(static_cast<char>(static_cast<int>(value)));
  }
}

// Elements of a tensor that is cut into several messages and parts. Each access costs a sanitizer ten times as much.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int64_t kLong = 90001;
#else
constexpr int64_t kLong = 300007;
#endif

// The tensors of one rank. Its output may be its input.
struct Buffers {
  std::vector<std::vector<char>> in, out;
  std::vector<Piece> pieces;
};

struct Case {
  Collective collective;
  DataType type;
  Reduction reduction;
  double scale;
  std::vector<int> ranks;
  std::vector<int64_t> counts;
  bool in_place;
  int root;
  Rows rows = {};  // of gathers and scatters; one each where it is empty
};

// Chosen so that every result is exact in every type: small, and multiples of 12 for means of up to 4.
inline double ValueOf(const Case& test, int place, size_t piece, int64_t i) {
  const int64_t mixed = place * 7 + static_cast<int64_t>(piece) * 3 + i * 5 + i / 11;
  if (test.type == DataType::kBool) return mixed % 3 == 0 ? 0 : 1;
  if (test.reduction == Reduction::kProduct) return 1 + mixed % 3;
  return 12.0 * static_cast<double>(mixed % 4) - (test.type == DataType::kBytes ? 0 : 12);
}

inline double Combine(const Case& test, double a, double b) {
  const bool is_bool = test.type == DataType::kBool;
  switch (test.reduction) {
    case Reduction::kSum:
    case Reduction::kMean:
      return is_bool ? std::max(a, b) : a + b;
    case Reduction::kMax:
      return std::max(a, b);
    case Reduction::kMin:
      return std::min(a, b);
    case Reduction::kProduct:
      return a * b;
  }
  return 0;
}

inline double Reduced(const Case& test, size_t piece, int64_t i) {
  double total = ValueOf(test, 0, piece, i);
  const int size = static_cast<int>(test.ranks.size());
  for (int place = 1; place < size; ++place) total = Combine(test, total, ValueOf(test, place, piece, i));
  return (test.reduction == Reduction::kMean ? total / size : total) * test.scale;
}

// Elements of the part of the rank at `place`, and of the parts before it.
inline int64_t PartCount(const Case& test, int place, size_t piece) {
  return test.counts[piece] * (test.rows.empty() ? 1 : test.rows[place][piece]);
}

inline int64_t PartBegin(const Case& test, int place, size_t piece) {
  int64_t begin = 0;
  for (int before = 0; before < place; ++before) begin += PartCount(test, before, piece);
  return begin;
}

inline int64_t AllCount(const Case& test, size_t piece) {
  return PartBegin(test, static_cast<int>(test.ranks.size()), piece);
}

inline int64_t InCount(const Case& test, int place, size_t piece) {
  const bool all = test.collective == Collective::kReduceScatter || test.collective == Collective::kAllToAll;
  return all ? AllCount(test, piece) : PartCount(test, place, piece);
}

inline int64_t OutCount(const Case& test, int place, size_t piece) {
  const bool all = test.collective == Collective::kAllGather || test.collective == Collective::kAllToAll;
  return all ? AllCount(test, piece) : PartCount(test, place, piece);
}

inline double Expected(const Case& test, int place, size_t piece, int64_t i) {
  const int64_t count = test.counts[piece];
  int from = 0;
  switch (test.collective) {
    case Collective::kAllReduce:
      return Reduced(test, piece, i);
    case Collective::kReduceScatter:
      return Reduced(test, piece, PartBegin(test, place, piece) + i);
    case Collective::kAllGather:
      while (i >= PartBegin(test, from + 1, piece)) ++from;
      return ValueOf(test, from, piece, i - PartBegin(test, from, piece));
    case Collective::kAllToAll:
      return ValueOf(test, static_cast<int>(i / count), piece, place * count + i % count);
    case Collective::kBroadcast:
      return ValueOf(test, test.root, piece, i);
    case Collective::kBarrier:
      return 0;
  }
  return 0;
}

inline std::unique_ptr<Buffers> MakeBuffers(const Case& test, int place) {
  auto buffers = std::make_unique<Buffers>();
  const int64_t bytes = static_cast<int64_t>(SizeOf(test.type));
  for (size_t piece = 0; piece < test.counts.size(); ++piece) {
    const int64_t in_count = InCount(test, place, piece);
    std::vector<char> in(in_count * bytes);
    for (int64_t i = 0; i < in_count; ++i) Put(test.type, in.data(), i, ValueOf(test, place, piece, i));
    buffers->in.push_back(std::move(in));
    buffers->out.emplace_back(OutCount(test, place, piece) * bytes, static_cast<char>(0x5a));
  }
  for (size_t piece = 0; piece < test.counts.size(); ++piece) {
    char* in = buffers->in[piece].data();
    char* out = test.in_place ? in : buffers->out[piece].data();
    buffers->pieces.push_back({in, out, test.counts[piece]});
  }
  return buffers;
}

inline void CheckBuffers(const Case& test, int place, const Buffers& buffers) {
  const size_t bytes = SizeOf(test.type);
  for (size_t piece = 0; piece < test.counts.size(); ++piece) {
    const char* out = test.in_place ? buffers.in[piece].data() : buffers.out[piece].data();
    for (int64_t i = 0; i < OutCount(test, place, piece); ++i) {
      char expected[8];
      Put(test.type, expected, 0, Expected(test, place, piece, i));
      if (std::memcmp(expected, out + i * static_cast<int64_t>(bytes), bytes) == 0) continue;
      std::fprintf(stderr, "%s of %s by %s, place %d, tensor %zu, element %ld is wrong\n", NameOf(test.collective),
                   NameOf(test.type), NameOf(test.reduction), place, piece, static_cast<long>(i));
      std::_Exit(1);
    }
  }
}

// The outputs of an all-gather are made when the rows of all ranks are known.
inline void StartAllGather(Communicator* communicator, const Case& test, const Call& call, Buffers* buffers,
                           Done done) {
  const int place = PlaceOf(communicator->rank(), test.ranks);
  const Rows rows = test.rows.empty() ? Rows(test.ranks.size(), std::vector<int64_t>(test.counts.size(), 1)) : test.rows;
  auto make_outputs = [rows, buffers](const Rows& told, std::vector<void*>* outputs) {
    CHECK(told == rows);
    for (std::vector<char>& out : buffers->out) outputs->push_back(out.data());
    return Status();
  };
  std::vector<Piece> pieces = buffers->pieces;
  for (Piece& piece : pieces) piece.out = nullptr;
  communicator->AllGather(call, test.type, pieces, rows[place], make_outputs, std::move(done));
}

inline void Start(Communicator* communicator, const Case& test, const Call& call, Buffers* buffers, Done done) {
  const std::vector<Piece>& pieces = buffers->pieces;
  switch (test.collective) {
    case Collective::kAllReduce:
      return communicator->AllReduce(call, test.type, test.reduction, test.scale, pieces, std::move(done));
    case Collective::kReduceScatter:
      return communicator->ReduceScatter(call, test.type, test.reduction, test.scale, pieces, test.rows,
                                         std::move(done));
    case Collective::kAllGather:
      return StartAllGather(communicator, test, call, buffers, std::move(done));
    case Collective::kAllToAll:
      return communicator->AllToAll(call, test.type, pieces, std::move(done));
    case Collective::kBroadcast:
      return communicator->Broadcast(call, test.type, test.root, pieces, std::move(done));
    case Collective::kBarrier:
      return communicator->Barrier(call, std::move(done));
  }
}

// Unequal ones, some of them none.
inline Rows RowsFor(size_t ranks, size_t tensors) {
  Rows rows(ranks, std::vector<int64_t>(tensors));
  for (size_t place = 0; place < ranks; ++place) {
    for (size_t piece = 0; piece < tensors; ++piece) rows[place][piece] = static_cast<int64_t>((3 * place + piece) % 4);
  }
  return rows;
}

// Every collective with every type and reduction, and with every shape of list and group for some of them.
inline std::vector<Case> CasesFor(int size) {
  std::vector<int> all(size), reversed(size), some;
  for (int rank = 0; rank < size; ++rank) {
    all[rank] = rank;
    reversed[size - 1 - rank] = rank;
    if (rank != 1) some.push_back(rank);
  }
  const std::vector<std::vector<int>> groups = {all, reversed, some, {size - 1}};
  std::vector<int64_t> many(40, 17);
  many[3] = kLong / 5;
  many[20] = 0;
  const std::vector<std::vector<int64_t>> lists = {{}, {0}, {1}, {7, 0, 1}, {kLong}, {20000, 5, 1, kLong / 4, 3}, many};
  std::vector<Case> cases;
  for (const auto& group : groups) {
    cases.push_back({Collective::kBarrier, DataType::kBytes, Reduction::kSum, 1.0, group, {}, false, 0});
  }
  for (const Collective collective : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllGather,
                                      Collective::kAllToAll, Collective::kBroadcast}) {
    const bool reduces = collective == Collective::kAllReduce || collective == Collective::kReduceScatter;
    const bool same_size = collective != Collective::kReduceScatter && collective != Collective::kAllGather;
    for (int type = 0; type < 8; ++type) {
      for (int reduction = 0; reduction < (reduces ? 5 : 1); ++reduction) {
        const Arithmetic arithmetic{static_cast<DataType>(type), static_cast<Reduction>(reduction), 1.0};
        if (reduces && !CheckArithmetic("", arithmetic).ok()) continue;
        const double scale = reduces && type < 4 && reduction < 2 ? 0.5 : 1.0;
        cases.push_back({collective, arithmetic.type, arithmetic.reduction, scale, all, {5, 0, 1003, 1}, false, 0});
      }
    }
    for (const auto& group : groups) {
      for (const auto& list : lists) {
        for (const bool in_place : {false, true}) {
          if (in_place && !same_size) continue;
          const int root = static_cast<int>(list.size() % group.size());
          cases.push_back(
              {collective, DataType::kFloat32, Reduction::kSum, 1.0, group, list, in_place, root});
          if (same_size) continue;
          cases.push_back(cases.back());
          cases.back().rows = RowsFor(group.size(), list.size());
        }
      }
    }
  }
  return cases;
}

// Runs the cases as one rank: `together` at a time, begun in an order of this rank's own.
inline void RunCases(Communicator* communicator, const std::vector<Case>& cases, size_t together, int64_t first_id) {
  std::mt19937 random(communicator->rank());
  for (size_t begin = 0; begin < cases.size(); begin += together) {
    std::vector<size_t> order;
    for (size_t k = begin; k < std::min(begin + together, cases.size()); ++k) order.push_back(k);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::unique_ptr<Buffers>> buffers(order.size());
    std::vector<std::unique_ptr<Outcome>> outcomes(order.size());
    for (size_t i = 0; i < order.size(); ++i) {
      const Case& test = cases[order[i]];
      const int place = PlaceOf(communicator->rank(), test.ranks);
      if (place < 0) continue;
      buffers[i] = MakeBuffers(test, place);
      outcomes[i] = std::make_unique<Outcome>();
      Start(communicator, test, {"case " + std::to_string(first_id + static_cast<int64_t>(order[i])), test.ranks},
            buffers[i].get(), outcomes[i]->done());
    }
    for (size_t i = 0; i < order.size(); ++i) {
      if (outcomes[i] == nullptr) continue;
      CheckOk(outcomes[i]->Wait());
      CheckBuffers(cases[order[i]], PlaceOf(communicator->rank(), cases[order[i]].ranks), *buffers[i]);
    }
  }
}

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_CASES_H_
