// What goes wrong inside the library, until the C interface turns it into a status and a message.

#pragma once

#include <exception>
#include <string>
#include <utility>

#include "mdprune.h"

namespace mdprune {

class Failure : public std::exception {
 public:
  Failure(mdp_status status, std::string text) : status_(status), text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }
  mdp_status status() const noexcept { return status_; }

 private:
  mdp_status status_;
  std::string text_;
};

// A file is missing, or not the one that another file speaks of, because the bundle is being
// replaced: opening it is tried again.
class Stale : public Failure {
 public:
  using Failure::Failure;
};

[[noreturn]] inline void corrupt(const std::string& text) { throw Failure(MDP_CORRUPT, text); }

inline void require(bool holds, const char* text) {
  if (!holds) corrupt(text);
}

}  // namespace mdprune
