// What ranks say to one another: collectives and messages over lists of tensors.
//
// A Communicator stands for one rank. Every call returns at once and runs `done` exactly once, on a thread of the
// communicator, when the rank's part is over: its outputs are written and nobody reads its inputs any more. What a call
// points at stays alive until then.
//
//   MemoryCommunicator   ranks are devices of one process: they read one another's buffers directly
//   MessageCommunicator  ranks are processes: algorithms over a Transport that sends bytes (MPI)
//
// A communicator says who keeps buffers alive after an error: those of a MemoryCommunicator are free once `done` has
// run; those of a MessageCommunicator must never be freed after a status that is not ok, since messages may still be
// under way.
//
// Sums are made in the order of the ranks, whatever arrives first, and all ranks get the same bits.

#ifndef WHALE_KERNELS_COMMUNICATOR_COMMUNICATOR_H_
#define WHALE_KERNELS_COMMUNICATOR_COMMUNICATOR_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/communicator/label.h"
#include "kernels/communicator/status.h"
#include "kernels/communicator/types.h"

namespace whale {

using Done = std::function<void(const Status&)>;

// One tensor of a list. Sizes count elements. `in` may equal `out` where both have the same size (AllReduce, AllToAll,
// Broadcast, all others but AllGather among one rank); otherwise they must not overlap.
struct Piece {
  const void* in;
  void* out;
  int64_t count;
};

// How many rows each rank has of each tensor of a list: by place, then by tensor. A row is `count` elements.
using Rows = std::vector<std::vector<int64_t>>;

// Makes the outputs of a list, once it is known how many rows all ranks bring. A status that is not ok ends the call.
using MakeOutputs = std::function<Status(const Rows&, std::vector<void*>* outputs)>;

// Which call it is. Calls with the same label and ranks meet, whatever the order in which each rank makes its calls:
// step by step, iteration by iteration, and within these in their order. While a rank's call is under way, it may make
// no second one of the same label that cannot be told apart: both are then refused.
// Calls that are numbered have one step, kAnyStep: those of one number meet in their order, whatever steps they are in.
// Each number of a label is remembered, in a few tens of bytes. A message that was sent, and not received because its
// receiver failed, is taken by the next call of its number.
constexpr int64_t kAnyStep = -1;
struct Call {
  Label label;
  std::vector<int> ranks;  // who takes part, in the order of the result; not looked at for messages
  int64_t step = 0;        // TensorFlow's number of what the call is made in: this process's own
  uint64_t iteration = 0;  // its number, or of the loops around the call: the same on all ranks
  // Types and shapes that all ranks must bring alike, as in "float32 [2,3], [5]", and "float32 [?,3], [?]" for an
  // all-gather; where left out, the counts stand for shapes.
  std::string tensors = {};
  bool detached = false;   // of a send that its step does not wait for: the next may follow at once
};

// What a message is like: the sender tells the receiver.
struct Header {
  DataType type = DataType::kFloat32;
  std::vector<int64_t> shape;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out = scale * the reduction of all ranks' in. kMean divides by the number of ranks; `scale` is for sums and means
  // of floats only.
  virtual void AllReduce(const Call& call, DataType type, Reduction reduction, double scale,
                         std::vector<Piece> pieces, Done done) = 0;
  // The rank at place k of `ranks` gets the k-th part of the reduction, as many rows as `rows` says, the same on every
  // rank; one row each where it is empty. in has the rows of all.
  virtual void ReduceScatter(const Call& call, DataType type, Reduction reduction, double scale,
                             std::vector<Piece> pieces, Rows rows, Done done) = 0;
  // in has as many rows as `rows`, this rank's own, says; out comes from `make_outputs` and gets the ranks' in, one after
  // another.
  virtual void AllGather(const Call& call, DataType type, std::vector<Piece> pieces, std::vector<int64_t> rows,
                         MakeOutputs make_outputs, Done done) = 0;
  // in and out have ranks.size() * count elements: part k goes to the rank at place k.
  virtual void AllToAll(const Call& call, DataType type, std::vector<Piece> pieces, Done done) = 0;
  // out = in of the rank at place `root`; in of the others is not looked at and may be null.
  virtual void Broadcast(const Call& call, DataType type, int root, std::vector<Piece> pieces, Done done) = 0;
  virtual void Barrier(const Call& call, Done done) = 0;

  // To and from one other rank (a number below size(), not a place).
  virtual void Send(const Call& call, int to, const Header& header, const void* data, Done done) = 0;
  // `allocate` is told what comes and gives where it is to be written.
  virtual void Receive(const Call& call, int from, std::function<void*(const Header&)> allocate, Done done) = 0;

  // Ends every call in flight, and every later one, with this status. The first of several wins.
  virtual void Abort(const Status& status) = 0;
  // Ends the calls of this label, step and iteration that this rank has in flight, with this status; what they have begun
  // ends on the other ranks too. Other calls go on.
  virtual void Cancel(const Call& call, const Status& status) = 0;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_COMMUNICATOR_H_
