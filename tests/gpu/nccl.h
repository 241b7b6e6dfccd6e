// NCCL between processes of one machine, by a file in shared memory. A call is done when it returns.
#include <atomic>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RANKS = 16, SLOT = 1 << 16 };
struct Meeting {
  std::atomic<long> arrived;
  alignas(64) char of_rank[RANKS][SLOT];
};
struct Communicator {
  Meeting *meeting;
  int rank, size;
  long rounds;
  // Waits until all ranks have called it as often.
  void meet() {
    rounds++;
    meeting->arrived++;
    while (meeting->arrived < rounds * size) sched_yield();
  }
};
struct UniqueId { char text[128]; };

template <class T> static void all_reduce(Communicator *c, const T *own, T *sum, size_t count) {
  const size_t most = SLOT / sizeof(T);
  for (size_t start = 0; start < count; start += most) {
    size_t n = std::min(most, count - start);
    memcpy(c->meeting->of_rank[c->rank], own + start, n * sizeof(T));
    c->meet();
    for (size_t i = 0; i < n; i++) {
      T all = 0;
      for (int rank = 0; rank < c->size; rank++) all += ((T *)c->meeting->of_rank[rank])[i];
      sum[start + i] = all;
    }
    c->meet();
  }
}

extern "C" {
int ncclGetUniqueId(UniqueId *id) {
  memset(id, 0, sizeof *id);
  snprintf(id->text, sizeof id->text, "/dev/shm/emulated-nccl-%d", (int)getpid());
  return 0;
}
int ncclCommInitRank(Communicator **c, int size, UniqueId id, int rank) {
  if (size > RANKS) return 4; // invalid argument
  int file = open(id.text, O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(Meeting)) != 0) return 2; // a system call has failed
  void *shared = mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) return 2;
  *c = new Communicator{(Meeting *)shared, rank, size, 0};
  (*c)->meet();
  if (rank == 0) unlink(id.text);
  TRACE("connected as %d of %d\n", rank, size);
  return 0;
}
int ncclAllReduce(const void *own, void *sum, size_t count, int dtype, int op, Communicator *c, void *) {
  if (op != 0) return 4; // not a sum
  TRACE("all-reduce %zu\n", count);
  if (dtype == 7) all_reduce(c, (const float *)own, (float *)sum, count);
  else if (dtype == 8) all_reduce(c, (const double *)own, (double *)sum, count);
  else return 4;
  return 0;
}
int ncclCommAbort(Communicator *c) {
  munmap(c->meeting, sizeof(Meeting));
  delete c;
  return 0;
}
}
