// Wakes the threads of other processes of this machine that sleep until a message comes.
//
// MPI has to be asked whether something has come. A thread that asks often takes its core from those that compute; one
// that asks seldom is late. So whoever sends rings at the receiver's door, and who is rung asks MPI at once:
//
//   rank 0:  MPI_Isend, ring ──▶ rank 1 sleeps in Wait(2 ms), wakes up, MPI_Testsome
//
// A ring is an empty hint: it may be lost, or come for nothing. Ranks on other machines are not rung.

#ifndef WHALE_KERNELS_COMMUNICATOR_DOORBELL_H_
#define WHALE_KERNELS_COMMUNICATOR_DOORBELL_H_

#include <array>
#include <string>
#include <vector>

#include "kernels/communicator/deadlines.h"

namespace whale {

class Doorbell {
 public:
  // What other processes need to ring here: which machine this is, and the name of the socket.
  using Address = std::array<char, 160>;

  Doorbell();  // where no socket can be had, nobody is rung and Wait only sleeps
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  Address address() const { return own_; }
  // The doors of all ranks, in their order.
  void SetPeers(const std::vector<Address>& peers, int rank);
  // Whether all other ranks can be rung.
  bool reaches_all() const { return reaches_all_; }

  // Rings at a rank's door; an answer is not answered in turn. Any thread may ring at its own door.
  void Ring(int rank, bool is_answer);
  void RingOwn();
  enum class Woken { kTime, kRing, kAnswer };
  // Sleeps until it is rung or the time is over. Rings from before count.
  Woken Wait(Clock::duration most);

 private:
  int socket_ = -1;
  Address own_{};
  std::vector<std::string> names_;  // of the ranks' sockets; empty where they cannot be reached
  std::string own_name_;
  bool reaches_all_ = false;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_DOORBELL_H_
