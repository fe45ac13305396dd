// What a rank brings to a collective, in a form that ranks can compare.

#ifndef WHALE_KERNELS_COMMUNICATOR_OFFER_H_
#define WHALE_KERNELS_COMMUNICATOR_OFFER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/communicator/communicator.h"
#include "kernels/communicator/reduce.h"

namespace whale {

enum class Collective : int32_t { kAllReduce, kReduceScatter, kAllGather, kAllToAll, kBroadcast, kBarrier };

const char* NameOf(Collective collective);

// Plain bytes: processes send it to one another as it is.
struct Offer {
  static constexpr int kShown = 128;

  Collective collective = Collective::kBarrier;
  DataType type = DataType::kBytes;
  Reduction reduction = Reduction::kSum;
  int32_t root = 0;
  double scale = 1.0;
  int64_t pieces = 0;
  int64_t elements = 0;
  uint64_t hash = 0;          // of all the tensors' types and shapes
  char tensors[kShown] = {};  // the first of them, to say where two ranks differ
};

// A collective as one rank calls it.
struct CollectiveCall {
  Call call;
  Collective collective = Collective::kBarrier;
  Arithmetic arithmetic;
  int root = 0;
  std::vector<Piece> pieces;
  // Of a reduce-scatter or all-gather; empty where each rank has one row. Of an all-gather they are this rank's alone,
  // rows[0], until all ranks have told theirs.
  Rows rows = {};
  MakeOutputs make_outputs = {};  // of an all-gather
};

// As many tensors as a letter can tell the rows of.
constexpr size_t kMostGathered = 8192;

Offer OfferOf(const CollectiveCall& call);

// How the offers of two ranks differ, as in "rank 0 gives 2 tensors and rank 1 gives 3"; empty where they fit.
std::string Difference(const Offer& mine, int my_rank, const Offer& other, int other_rank);

// Ok, or kInvalidArgument: `rank` must be one of the call's ranks, which are below `size` and each there once.
Status CheckCall(const CollectiveCall& call, int rank, int size);

// How many rows the rank at `place` has of a tensor: once all ranks have told theirs.
int64_t RowsOf(const CollectiveCall& call, size_t place, size_t piece);

// Gives an all-gather its outputs, now that the rows of all ranks are known.
Status TakeRows(Rows rows, CollectiveCall* call);

// Bytes of all the call's pieces by their counts.
int64_t BytesOf(const CollectiveCall& call);

// The place of `rank` in `ranks`, or -1.
int PlaceOf(int rank, const std::vector<int>& ranks);

// "rank 3", "ranks 0, 3".
std::string NamesOf(const std::vector<int>& ranks);

// "all-reduce 'step at train.py:8'"
std::string Title(const CollectiveCall& call);

// "float32 [2,3], [5], sum"; of many tensors the first ones.
std::string Brings(const CollectiveCall& call);

// "300", "0.25"
std::string Seconds(double seconds);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_OFFER_H_
