/* SPDX-License-Identifier: Apache-2.0 */
/* The service manager: sockets it passes, and what it is told. notify-none.c does without. */
#ifndef DCMEM_NOTIFY_H
#define DCMEM_NOTIFY_H

#include <stdint.h>

/* Descriptors named "control" and "text"; -1 where none was passed. */
int notify_listen_fds(int *ret_control, int *ret_text);
/* As sd_notify(3): "READY=1\nSTATUS=...". Nothing when nobody asked. */
void notify_send(const char *state);
/* How often to send WATCHDOG=1; 0 if nobody watches. */
uint64_t notify_watchdog_ns(void);

#endif
