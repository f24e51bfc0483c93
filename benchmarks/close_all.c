/* What close_all is measured against: the same, in C, with no account of how each one ended.
 *
 * End every connection of `descriptors` gracefully: send our FIN, wait for the peer's, throwing
 * away what it still sends, then close. All of them at once, in `milliseconds` at most; what is
 * unfinished then is closed as it is. Every descriptor is closed afterwards, and -1. Gives the
 * number of peers whose FIN came, or -1 with errno set if nothing could be begun.
 *
 * shutdown(2), epoll(7), recv(2).
 */
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, SCRATCH = 65536 };

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

int close_all(int *descriptors, int count, int milliseconds)
{
    static char scratch[SCRATCH];
    struct epoll_event events[EVENTS];
    int64_t deadline = now() + milliseconds;
    int waiting = 0, answered = 0;

    int poll = epoll_create1(EPOLL_CLOEXEC);
    if (poll < 0)
        return -1;
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        shutdown(descriptors[i], SHUT_WR); /* a connection that is over reads as such below */
        if (epoll_ctl(poll, EPOLL_CTL_ADD, descriptors[i], &event) == 0)
            waiting++;
    }
    while (waiting > 0) {
        int64_t left = deadline - now();
        int ready = epoll_wait(poll, events, EVENTS, left > 0 ? (int)left : 0);
        if (ready < 0 && errno != EINTR)
            break;
        if (ready <= 0 && left <= 0)
            break;
        for (int i = 0; i < ready; i++) {
            int descriptor = descriptors[events[i].data.u32];
            ssize_t size;
            do
                size = recv(descriptor, scratch, SCRATCH, MSG_DONTWAIT);
            while (size > 0);
            if (size < 0 && (errno == EAGAIN || errno == EINTR))
                continue;
            answered += size == 0;
            close(descriptor); /* which takes it from the epoll as well */
            descriptors[events[i].data.u32] = -1;
            waiting--;
        }
    }
    close(poll);
    for (int i = 0; i < count; i++) {
        if (descriptors[i] != -1) {
            close(descriptors[i]);
            descriptors[i] = -1;
        }
    }
    return answered;
}
