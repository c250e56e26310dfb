#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "failure.h"

namespace mdprune {
namespace {

[[noreturn]] void fail(const std::string& name, int error) {
  const std::string text = name + ": " + std::strerror(error);
  switch (error) {
    case ENOENT: throw Stale(MDP_NOT_FOUND, text);
    case ENOTDIR:
    case ELOOP: throw Failure(MDP_NOT_FOUND, text);
    case ENOMEM: throw Failure(MDP_NO_MEMORY, text);
    default: throw Failure(MDP_IO, text);
  }
}

int open_at(int directory, const char* name, int flags) {
  int descriptor;
  do {
    descriptor = ::openat(directory, name, flags | O_RDONLY | O_CLOEXEC);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) fail(name, errno);
  return descriptor;
}

FileIdentity identify(const struct stat& status) {
#if defined(__APPLE__)
  const auto& changed = status.st_mtimespec;
#else
  const auto& changed = status.st_mtim;
#endif
  return {status.st_dev, status.st_ino, status.st_size,
          std::int64_t{changed.tv_sec} * 1000000000 + changed.tv_nsec};
}

struct Descriptor {
  int number;
  ~Descriptor() { ::close(number); }
};

}  // namespace

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(identity_, other.identity_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), size_);
}

Directory::Directory(const char* path) : descriptor_(open_at(AT_FDCWD, path, O_DIRECTORY)) {}

Directory::~Directory() { ::close(descriptor_); }

Directory Directory::directory(const char* name) const {
  return Directory(open_at(descriptor_, name, O_DIRECTORY | O_NOFOLLOW));
}

MappedFile Directory::map(const std::string& name) const {
  // O_NONBLOCK: a FIFO in the place of a file must not stop the caller.
  const Descriptor file{open_at(descriptor_, name.c_str(), O_NOFOLLOW | O_NONBLOCK)};
  struct stat status;
  if (::fstat(file.number, &status) != 0) fail(name, errno);
  if (!S_ISREG(status.st_mode)) throw Failure(MDP_CORRUPT, name + " is not a regular file");
  MappedFile mapped;
  mapped.identity_ = identify(status);
  mapped.size_ = static_cast<std::size_t>(status.st_size);
  if (mapped.size_ == 0) return mapped;
  void* data = ::mmap(nullptr, mapped.size_, PROT_READ, MAP_SHARED, file.number, 0);
  if (data == MAP_FAILED) fail(name, errno);
  mapped.data_ = static_cast<const std::uint8_t*>(data);
  return mapped;
}

bool Directory::holds(const std::string& name, const FileIdentity& identity) const {
  struct stat status;
  return ::fstatat(descriptor_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
         identify(status) == identity;
}

bool Directory::is_same(const Directory& other) const {
  struct stat own;
  struct stat others;
  return ::fstat(descriptor_, &own) == 0 && ::fstat(other.descriptor_, &others) == 0 &&
         own.st_dev == others.st_dev && own.st_ino == others.st_ino;
}

}  // namespace mdprune
