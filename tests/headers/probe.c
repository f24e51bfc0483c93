/*
 * The values in a platform's headers, as an array that is read from the object file.
 * It is compiled for every target in targets.toml, and never linked or run. The array omits names
 * that a header does not have.
 */

#define _GNU_SOURCE /* for musl's struct tcp_info */
#include <stddef.h>

#ifdef _WIN32
#include <winsock2.h>
#else
#include <sys/types.h>

#include <sys/socket.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#endif

#if __has_include(<linux/sockios.h>)
#include <linux/sockios.h> /* SIOCOUTQ */
#endif
#if __has_include(<sys/filio.h>)
#include <sys/filio.h> /* FIONWRITE */
#endif
#if __has_include(<netinet/tcp_fsm.h>)
#include <netinet/tcp_fsm.h> /* TCPS_FIN_WAIT_1 and other states */
#endif

struct fact {
    char name[56];
    long long value;
};

/* The name is the text between the brackets; macros in it are not expanded. */
#define FACT(expression) {#expression, (long long)(expression)},
#define MEMBER(type, member)                                                                  \
    {"offset of " #member, offsetof(type, member)},                                           \
        {"size of " #member, sizeof(((type *)0)->member)},
#define SIGNED(type, member)                                                                  \
    {"signed " #member, (__typeof__(((type *)0)->member))-1 < 0},

const struct fact facts[] = {
    {"graceful-close", 0x0102030405060708}, /* where it begins, and in which byte order */

    /* SO_LINGER */
    FACT(SOL_SOCKET)
    FACT(sizeof(struct linger))
    MEMBER(struct linger, l_onoff)
    SIGNED(struct linger, l_onoff)
    MEMBER(struct linger, l_linger)
    SIGNED(struct linger, l_linger)
#ifdef SO_LINGER
    FACT(SO_LINGER)
#endif
#ifdef SO_LINGER_SEC
    FACT(SO_LINGER_SEC)
#endif

    /* Unacknowledged bytes */
    FACT(sizeof(int))
    FACT(IPPROTO_TCP)
#ifdef SIOCOUTQ
    FACT(SIOCOUTQ)
#endif
#ifdef FIONWRITE
    FACT(FIONWRITE)
#endif
#ifdef SO_NWRITE
    FACT(SO_NWRITE)
#endif
#ifdef TCP_CONNECTION_INFO /* Apple */
    FACT(TCP_CONNECTION_INFO)
    MEMBER(struct tcp_connection_info, tcpi_state)
#endif
#ifdef TCPS_FIN_WAIT_1 /* the BSDs; Apple's kernel has these states too, its headers do not */
    FACT(TCP_INFO)
    MEMBER(struct tcp_info, tcpi_state)
    FACT(TCPS_FIN_WAIT_1)
    FACT(TCPS_CLOSING)
    FACT(TCPS_LAST_ACK)
#endif
#ifdef __linux__
    FACT(TCP_INFO)
    MEMBER(struct tcp_info, tcpi_state)
    FACT(TCP_FIN_WAIT2)
    FACT(TCP_TIME_WAIT)
#endif
#ifdef __OpenBSD__
    MEMBER(struct tcp_info, tcpi_so_snd_sb_cc)
#endif

    /* connect() to AF_UNSPEC */
    FACT(AF_UNSPEC)
    FACT(sizeof(struct sockaddr))
    MEMBER(struct sockaddr, sa_family)

    /* Winsock's errors */
#ifdef _WIN32
    FACT(WSAEINTR)
    FACT(WSAEWOULDBLOCK)
    FACT(WSAENOTSOCK)
    FACT(WSAENETDOWN)
    FACT(WSAENETUNREACH)
    FACT(WSAENETRESET)
    FACT(WSAECONNABORTED)
    FACT(WSAECONNRESET)
    FACT(WSAENOTCONN)
    FACT(WSAETIMEDOUT)
    FACT(WSAECONNREFUSED)
    FACT(WSAEHOSTDOWN)
    FACT(WSAEHOSTUNREACH)
#endif

    {"", 0},
};
