#include "kernels/communicator/waiting.h"

#include <chrono>
#include <cstdio>

#include "kernels/communicator/offer.h"

namespace whale {
namespace {

constexpr size_t kMostShown = 8;
constexpr std::chrono::seconds kRecently(30);

// "5.1 s"
std::string Tenths(Clock::duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", std::chrono::duration<double>(duration).count());
  return text;
}

}  // namespace

std::string WaitingText(const std::string& title, const std::string& brings, Clock::duration since,
                        const std::vector<int>& missing) {
  const std::string of = brings.empty() ? "" : " of " + brings;
  return title + of + ", for " + Tenths(since) + (missing.empty() ? "" : ", waits for " + NamesOf(missing));
}

std::string Joined(const std::vector<std::string>& calls) {
  std::string text;
  for (size_t i = 0; i < calls.size() && i < kMostShown; ++i) text += (i == 0 ? "" : "; ") + calls[i];
  if (calls.size() > kMostShown) text += "; and " + std::to_string(calls.size() - kMostShown) + " more";
  return calls.empty() ? "in no call" : text;
}

bool Heard::IsRecent() const { return Clock::now() - at < kRecently; }

std::string Heard::Text() const { return text + ", as it said " + Tenths(Clock::now() - at) + " ago"; }

void Recent::Add(std::string text) {
  calls_.emplace_front(std::move(text), Clock::now());
  if (calls_.size() > kMostShown) calls_.pop_back();
}

std::vector<std::string> Recent::Texts() const {
  std::vector<std::string> texts;
  const Clock::time_point now = Clock::now();
  for (const auto& [text, ended_at] : calls_) {
    if (now - ended_at < kRecently) texts.push_back(text + ", until it failed " + Tenths(now - ended_at) + " ago");
  }
  return texts;
}

}  // namespace whale
