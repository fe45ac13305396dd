#include "kernels/communicator/doorbell.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <fstream>

namespace whale {
namespace {

constexpr char kSent = 's';
constexpr char kAnswer = 'a';
constexpr size_t kNameAt = 96;  // in an address: the machine comes first

// The boot of the kernel and the network namespace: sockets with abstract names are one namespace's own.
std::string Machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat network {};
  if (boot.empty() || stat("/proc/self/ns/net", &network) != 0) return "";
  return boot + " " + std::to_string(network.st_dev) + " " + std::to_string(network.st_ino);
}

// Fills in a socket address and gives its length.
socklen_t AddressOf(const std::string& name, sockaddr_un* address) {
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
}

}  // namespace

Doorbell::Doorbell() {
  const std::string machine = Machine();
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socklen_t length = sizeof(sa_family_t);  // no name: the kernel chooses an abstract one
  if (machine.empty() || machine.size() >= kNameAt || socket_ < 0 ||
      bind(socket_, reinterpret_cast<sockaddr*>(&address), length) != 0) {
    return;
  }
  length = sizeof(address);
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) != 0) return;
  own_name_.assign(address.sun_path, length - offsetof(sockaddr_un, sun_path));
  if (own_name_.empty() || kNameAt + 1 + own_name_.size() > own_.size()) return;
  std::copy(machine.begin(), machine.end(), own_.begin());
  own_[kNameAt] = static_cast<char>(own_name_.size());
  std::copy(own_name_.begin(), own_name_.end(), own_.begin() + kNameAt + 1);
}

Doorbell::~Doorbell() {
  if (socket_ >= 0) close(socket_);
}

void Doorbell::SetPeers(const std::vector<Address>& peers, int rank) {
  names_.assign(peers.size(), "");
  reaches_all_ = true;
  for (size_t i = 0; i < peers.size(); ++i) {
    const Address& peer = peers[i];
    const auto length = static_cast<size_t>(peer[kNameAt]);
    const bool here = own_[0] != '\0' && std::equal(own_.begin(), own_.begin() + kNameAt, peer.begin());
    if (here && length > 0 && kNameAt + 1 + length <= peer.size()) names_[i].assign(&peer[kNameAt + 1], length);
    if (static_cast<int>(i) != rank) reaches_all_ = reaches_all_ && !names_[i].empty();
  }
}

void Doorbell::Ring(int rank, bool is_answer) {
  if (names_.empty() || names_[rank].empty()) return;
  sockaddr_un address{};
  const socklen_t length = AddressOf(names_[rank], &address);
  const char kind = is_answer ? kAnswer : kSent;
  // Who does not come to the door has enough rings waiting, or has gone: both are no concern of the one that rings.
  (void)sendto(socket_, &kind, 1, MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&address), length);
}

void Doorbell::RingOwn() {
  if (own_name_.empty()) return;
  sockaddr_un address{};
  const socklen_t length = AddressOf(own_name_, &address);
  (void)sendto(socket_, &kAnswer, 1, MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&address), length);
}

Doorbell::Woken Doorbell::Wait(Clock::duration most) {
  pollfd waited{socket_, POLLIN, 0};
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(most).count();
  const timespec time{nanoseconds / 1000000000, nanoseconds % 1000000000};
  if (ppoll(&waited, own_name_.empty() ? 0 : 1, &time, nullptr) <= 0) return Woken::kTime;
  Woken woken = Woken::kAnswer;
  char kind = 0;
  while (recv(socket_, &kind, 1, MSG_DONTWAIT) == 1) {
    if (kind == kSent) woken = Woken::kRing;
  }
  return woken;
}

}  // namespace whale
