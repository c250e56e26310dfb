// Directories and mapped files.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace mdprune {

// Says which content a name stands for; differs after the file was replaced.
struct FileIdentity {
  dev_t device = 0;
  ino_t number = 0;
  off_t size = 0;
  std::int64_t changed = 0;  // nanoseconds

  bool operator==(const FileIdentity& other) const {
    return device == other.device && number == other.number && size == other.size &&
           changed == other.changed;
  }
};

// A whole file, read-only. Pages are shared with every process that maps the file.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  const FileIdentity& identity() const { return identity_; }

 private:
  friend class Directory;
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  FileIdentity identity_;
};

// Holds on to a directory: names are those in it, whatever happens to its own name.
class Directory {
 public:
  explicit Directory(const char* path);
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory();

  Directory directory(const char* name) const;
  // `name` is a plain name; links are not followed.
  MappedFile map(const std::string& name) const;
  bool holds(const std::string& name, const FileIdentity& identity) const;
  bool is_same(const Directory& other) const;

 private:
  explicit Directory(int descriptor) : descriptor_(descriptor) {}
  int descriptor_;
};

}  // namespace mdprune
