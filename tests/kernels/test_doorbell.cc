// Rings between the progress threads of one machine.

#include <thread>
#include <vector>

#include "kernels/communicator/doorbell.h"
#include "tests/kernels/checks.h"

namespace whale {
namespace {

using std::chrono::seconds;
using Woken = Doorbell::Woken;
constexpr Clock::duration kNow = Clock::duration::zero();

struct Doors {
  Doorbell first, second;

  Doors() {
    const std::vector<Doorbell::Address> both = {first.address(), second.address()};
    first.SetPeers(both, 0);
    second.SetPeers(both, 1);
  }
};

void ARingEndsTheSleepOfTheOneThatIsRung() {
  Doors doors;
  CHECK(doors.first.reaches_all() && doors.second.reaches_all());
  std::thread ringing([&] { doors.first.Ring(1, false); });
  CHECK(doors.second.Wait(seconds(60)) == Woken::kRing);
  ringing.join();
  CHECK(doors.first.Wait(kNow) == Woken::kTime);
  CHECK(doors.second.Wait(kNow) == Woken::kTime);
}

void ARingFromBeforeCountsOnceHoweverOftenItWasRung() {
  Doors doors;
  for (int i = 0; i < 5000; ++i) doors.first.Ring(1, true);  // more than a socket holds
  CHECK(doors.second.Wait(seconds(60)) == Woken::kAnswer);
  CHECK(doors.second.Wait(kNow) == Woken::kTime);
}

void AmongAnswersARingIsARing() {
  Doors doors;
  doors.first.Ring(1, true);
  doors.first.Ring(1, false);
  doors.first.Ring(1, true);
  CHECK(doors.second.Wait(seconds(60)) == Woken::kRing);
}

void OwnNewsIsNothingToAnswer() {
  Doors doors;
  std::thread ringing([&] { doors.first.RingOwn(); });
  CHECK(doors.first.Wait(seconds(60)) == Woken::kAnswer);
  ringing.join();
}

void WhoIsElsewhereOrGoneIsNotRung() {
  Doorbell here;
  Doorbell::Address elsewhere = here.address();
  elsewhere[0] ^= 1;  // another boot
  here.SetPeers({here.address(), elsewhere}, 0);
  CHECK(!here.reaches_all());
  here.Ring(1, false);
  Doorbell::Address gone;
  {
    Doorbell other;
    gone = other.address();
  }
  here.SetPeers({here.address(), gone}, 0);
  here.Ring(1, false);
  CHECK(here.Wait(kNow) == Woken::kTime);
}

}  // namespace
}  // namespace whale

int main() {
  whale::ARingEndsTheSleepOfTheOneThatIsRung();
  whale::ARingFromBeforeCountsOnceHoweverOftenItWasRung();
  whale::AmongAnswersARingIsARing();
  whale::OwnNewsIsNothingToAnswer();
  whale::WhoIsElsewhereOrGoneIsNotRung();
  return 0;
}
