/*
 * What Winsock makes of a struct linger: sets an option from hexadecimal bytes, reads it back.
 *
 *     winsock_linger.exe LEVEL OPTION SIZE BYTES...
 *
 * For each BYTES one line: setsockopt()'s error, 0 for none, and what getsockopt() then gives a
 * caller that has room for SIZE bytes.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <winsock2.h>

int main(int argc, char **argv)
{
    WSADATA data;
    if (argc < 5 || WSAStartup(MAKEWORD(2, 2), &data) != 0)
        return 2;
    int level = strtol(argv[1], NULL, 0), option = strtol(argv[2], NULL, 0);
    for (int i = 4; i < argc; i++) {
        char given[64] = {0}, got[64] = {0};
        int length = strlen(argv[i]) / 2, room = strtol(argv[3], NULL, 0);
        for (int at = 0; at < length && at < (int)sizeof(given); at++) {
            char pair[3] = {argv[i][2 * at], argv[i][2 * at + 1], 0};
            given[at] = (char)strtol(pair, NULL, 16);
        }
        SOCKET sock = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
        if (sock == INVALID_SOCKET)
            return 3;
        int error = setsockopt(sock, level, option, given, length) ? WSAGetLastError() : 0;
        if (getsockopt(sock, level, option, got, &room) != 0)
            return 4;
        printf("%d ", error);
        for (int at = 0; at < room; at++)
            printf("%02x", got[at] & 0xff);
        printf("\n");
        closesocket(sock);
    }
    WSACleanup();
    return 0;
}
