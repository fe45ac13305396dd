// A call while it is under way between processes: a state machine that the progress thread moves on.

#ifndef WHALE_KERNELS_COMMUNICATOR_OPERATION_H_
#define WHALE_KERNELS_COMMUNICATOR_OPERATION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/communicator/blocks.h"
#include "kernels/communicator/communicator.h"
#include "kernels/communicator/mailbox.h"
#include "kernels/communicator/offer.h"
#include "kernels/communicator/transport.h"

namespace whale {

// What operations work with.
struct Engine {
  Transport* transport;
  Blocks* blocks;
  Mailbox* mailbox;
};

// What a call is given when it begins.
struct Admission {
  Ticket ticket;
  int number = 0;  // of this rank's own, for the tags of what it sends

  Letter letter(int round = 0) const { return {Letter::kCall, 0, number, round, ticket}; }
};

class Operation {
 public:
  virtual ~Operation() = default;

  // "all-reduce 'step at train.py:8'"
  virtual std::string title() const = 0;
  // What is brought: "float32 [2,3], sum"; empty where there is nothing to say.
  virtual std::string brings() const = 0;
  // Starts what can be started and takes what has come; `*over` where the rank's part is done. A status that is not ok
  // ends the operation; transfers that it has begun may still be under way, so it must be kept.
  virtual Status Advance(const Engine& engine, bool* over) = 0;
  // The ranks (not places) of which something is awaited.
  virtual std::vector<int> WaitsFor() const = 0;
  // Grows whenever a transfer has come to its end: tells slow from stuck.
  int64_t moves() const { return moves_; }
  void Moved() { ++moves_; }
  // Counts a move, and turns a failed or too short transfer with `rank` into a status; `bytes` < 0: of any length.
  Status Taken(const Transfer& transfer, int rank, int64_t bytes);

 private:
  int64_t moves_ = 0;
};

// `rank`: this one's.
std::unique_ptr<Operation> MakeReduction(CollectiveCall call, int rank, const Admission& own);  // or reduce-scatter
std::unique_ptr<Operation> MakeExchange(CollectiveCall call, int rank, const Admission& own);  // all-gather, all-to-all
std::unique_ptr<Operation> MakeBroadcast(CollectiveCall call, int rank, const Admission& own);
std::unique_ptr<Operation> MakeBarrier(CollectiveCall call, int rank, const Admission& own);
std::unique_ptr<Operation> MakeSend(const Call& call, int to, const Header& header, const void* data,
                                    const Admission& own);
std::unique_ptr<Operation> MakeReceive(const Call& call, int from, std::function<void*(const Header&)> allocate,
                                       const Admission& own);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_OPERATION_H_
