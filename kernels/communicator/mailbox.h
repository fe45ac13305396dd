// Letters between ranks: what a rank says before data move, and when something is wrong.
//
// Letters of all calls share one tag. Data have tags of their sender's own choice, which its letter tells: calls need no
// numbers that ranks agree on.
//
//   rank 0  ──kCall: ticket, number 17, what it brings──▶  rank 1: finds its own call with this ticket, and takes the
//           ──data, tag of 17──────────────────────────▶          data under the tag of rank 0's number

#ifndef WHALE_KERNELS_COMMUNICATOR_MAILBOX_H_
#define WHALE_KERNELS_COMMUNICATOR_MAILBOX_H_

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/communicator/tickets.h"
#include "kernels/communicator/transport.h"

namespace whale {

// Data of a call have the tag number * kPhases + phase, with the number that its sender has given to it.
enum Phase { kParts = 0, kResults = 1, kPhases = 2 };
constexpr int kLetterTag = 0;  // no call has the number 0
constexpr int64_t kNumbers = int64_t{1} << 27;

inline int TagOf(int64_t number, Phase phase) { return static_cast<int>(number * kPhases + phase); }

// What a letter begins with, as plain bytes; text or data may follow.
struct Letter {
  enum Kind : int32_t {
    kCall,      // the sender has come to the call
    kEnded,     // it has ended it, with `code` and why
    kQuestion,  // in which calls is the receiver?
    kAnswer,    // in these
    kFarewell,  // the sender's last; `code` says whether all went well
  };
  Kind kind = kCall;
  int32_t code = 0;
  int32_t number = 0;  // of the sender's call
  int32_t round = 0;   // of the letters that a call sends to one rank
  Ticket ticket;
};

using Payload = std::shared_ptr<const std::vector<char>>;

struct Mail {
  int from = 0;
  Letter letter;
  std::vector<char> payload;

  std::string text() const { return std::string(payload.begin(), payload.end()); }
};

// Used by the progress thread only.
class Mailbox {
 public:
  static constexpr int64_t kMostBytes = 68 << 10;  // of a payload

  explicit Mailbox(Transport* transport);

  // The payload is kept until it is sent.
  void Send(int to, const Letter& letter, const Payload& payload);
  void Send(int to, const Letter& letter, const std::string& text);
  // Takes in what has come; true where something has.
  bool Poll();
  // The call's letter from a rank, if it is here: once.
  std::optional<Mail> Take(int from, const Ticket& ticket, int round);
  // All that has come and is no kCall, in order.
  std::deque<Mail> TakeNotes();
  // Throws away the call's letters, those included that are still to come.
  void Refuse(const Ticket& ticket);
  bool all_sent() const;
  // The ranks to or from which a letter did not get through, with why.
  const std::map<int, Status>& lost() const { return lost_; }

 private:
  struct Sent {
    int to;
    std::vector<char> bytes;
    std::shared_ptr<Transfer> transfer;
  };
  struct Box {
    std::unique_ptr<char[]> next;  // where the next letter comes to
    std::shared_ptr<Transfer> transfer;
  };
  void Listen(int from);
  void Sort(Mail mail);

  Transport* const transport_;
  std::vector<Box> boxes_;  // by rank
  std::deque<Sent> sent_;
  std::map<std::tuple<Ticket, int, int>, Mail> calls_;  // by ticket, rank and round
  std::set<Ticket> refused_;
  std::deque<Mail> notes_;
  std::map<int, Status> lost_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MAILBOX_H_
