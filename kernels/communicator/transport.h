// Bytes to and from ranks: all that a MessageCommunicator asks of whatever lies between processes.

#ifndef WHALE_KERNELS_COMMUNICATOR_TRANSPORT_H_
#define WHALE_KERNELS_COMMUNICATOR_TRANSPORT_H_

#include <cstdint>
#include <memory>

#include "kernels/communicator/deadlines.h"
#include "kernels/communicator/status.h"

namespace whale {

// A message under way. `done` turns true inside Poll, or at once.
struct Transfer {
  bool done = false;
  int64_t bytes = 0;  // how many came, of a receive
  Status status;      // of the transfer, once it is done
  bool awaited = true;  // of a receive: somebody waits for it now
};

// Used by one thread only. Nothing blocks. Messages from one rank to another with the same tag arrive in the order in
// which they were sent; receives take them in the order in which they were posted. The memory of a transfer belongs to
// the transport until it is done.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The largest tag there is.
  virtual int64_t max_tag() const = 0;

  virtual std::shared_ptr<Transfer> Send(int to, int tag, const void* data, int64_t bytes) = 0;
  // The message must not be longer than `bytes`; what is shorter says so in Transfer::bytes.
  virtual std::shared_ptr<Transfer> Receive(int from, int tag, void* data, int64_t bytes) = 0;
  // The same, of what may come at any time or never: not `awaited` until somebody says so.
  virtual std::shared_ptr<Transfer> Listen(int from, int tag, void* data, int64_t bytes) = 0;
  // Moves things on; true where a transfer came to its end.
  virtual bool Poll() = 0;
  // Whether Wait ends when a rank has sent something, whichever it is.
  virtual bool hears_all() const { return false; }
  // Sleeps until a rank has sent something, as far as it can be heard, or until Wake; true where it was not for the time.
  virtual bool Wait(Clock::duration most) = 0;
  // Ends Wait, also one that is to come. Any thread may call it.
  virtual void Wake() = 0;
  // The last call. `clean`: nothing is under way, and all ranks come here; only then may it wait for them.
  virtual void Close(bool clean) = 0;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_TRANSPORT_H_
