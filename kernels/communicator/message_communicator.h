// Collectives between processes: a thread that moves calls on over a Transport.
//
// Calls are put in a queue; the progress thread alone touches the transport and runs all dones. Calls are under way at
// the same time, in whatever order each rank makes them: the letters by which ranks say what they bring tell which call
// they belong to (tickets.h, mailbox.h).
// The thread polls while something moves, then yields, then sleeps for 20 to 200 us; where nothing is in flight it waits
// for a call, and looks for letters a few times a second.
//
// A call that fails, or whose step is cancelled, ends on all its ranks; other calls, and later ones of its label, go on.
// Where ranks do not fit together or do not come, the error lists in which calls each of them is. Its messages may still be
// under way: its buffers must never be freed.

#ifndef WHALE_KERNELS_COMMUNICATOR_MESSAGE_COMMUNICATOR_H_
#define WHALE_KERNELS_COMMUNICATOR_MESSAGE_COMMUNICATOR_H_

#include <functional>
#include <memory>
#include <vector>

#include "kernels/communicator/communicator.h"
#include "kernels/communicator/offer.h"
#include "kernels/communicator/operation.h"
#include "kernels/communicator/transport.h"

namespace whale {

class Progress;

class MessageCommunicator : public Communicator {
 public:
  // Makes the transport; runs on the progress thread.
  using Start = std::function<Status(std::unique_ptr<Transport>*)>;

  // Over a progress thread that runs.
  explicit MessageCommunicator(std::shared_ptr<Progress> progress);
  // Waits until the transport is there, at most for `timeout_seconds`, which calls will be given as well.
  static Status Make(Start start, double timeout_seconds, std::unique_ptr<MessageCommunicator>* made);
  ~MessageCommunicator() override;  // stops it

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduce(const Call& call, DataType type, Reduction reduction, double scale, std::vector<Piece> pieces,
                 Done done) override;
  void ReduceScatter(const Call& call, DataType type, Reduction reduction, double scale, std::vector<Piece> pieces,
                     Rows rows, Done done) override;
  void AllGather(const Call& call, DataType type, std::vector<Piece> pieces, std::vector<int64_t> rows,
                 MakeOutputs make_outputs, Done done) override;
  void AllToAll(const Call& call, DataType type, std::vector<Piece> pieces, Done done) override;
  void Broadcast(const Call& call, DataType type, int root, std::vector<Piece> pieces, Done done) override;
  void Barrier(const Call& call, Done done) override;
  void Send(const Call& call, int to, const Header& header, const void* data, Done done) override;
  void Receive(const Call& call, int from, std::function<void*(const Header&)> allocate, Done done) override;
  void Abort(const Status& status) override;
  void Cancel(const Call& call, const Status& status) override;

  // A call during which no message comes to its end for so long ends with kDeadlineExceeded, which says of which ranks
  // something is awaited.
  void SetTimeout(double seconds);

  // Gives calls in flight `seconds` to end, then ends them with kUnavailable, and closes the transport. It is closed in
  // agreement with the other ranks only if every call went well, and then this waits for them, at most for the timeout;
  // Abort ends that. Else it waits at most about three times `seconds`; a thread that does not come back is left alone.
  // Later calls end at once with kUnavailable.
  void Stop(double seconds);

 private:
  using MakeCollective = std::unique_ptr<Operation> (*)(CollectiveCall, int, const Admission&);
  using MakeMessage = std::function<std::unique_ptr<Operation>(const Admission&)>;
  void Begin(MakeCollective make, CollectiveCall call, Done done);
  void Begin(const char* kind, const Call& call, int from, int to, const MakeMessage& make, Done done);

  const std::shared_ptr<Progress> progress_;
  const int rank_;
  const int size_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MESSAGE_COMMUNICATOR_H_
