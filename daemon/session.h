/* SPDX-License-Identifier: Apache-2.0 */
/* A connection of a mapping client: packets of dcmem/wire.h over SOCK_SEQPACKET. */
#ifndef DCMEM_SESSION_H
#define DCMEM_SESSION_H

#include "daemon/server.h"

/* Takes the descriptor over in any case. */
void session_start(struct server *server, int fd);
/* Ends it; it goes when its operations have ended. */
void session_end(struct session *session);
struct session *session_next(const struct session *session);

#endif
