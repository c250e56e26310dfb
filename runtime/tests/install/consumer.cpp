#include <iostream>
#include <mdprune.hpp>

int main() {
  try {
    mdprune::Model model("/nowhere");
  } catch (const mdprune::Error& error) {
    std::cout << mdp_version() << ": " << error.what() << "\n";
    return error.status() == MDP_NOT_FOUND ? 0 : 1;
  }
  return 1;
}
