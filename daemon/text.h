/* SPDX-License-Identifier: Apache-2.0 */
/* A connection that cannot map: lines of JSON and raw bytes over SOCK_STREAM. */
#ifndef DCMEM_TEXT_H
#define DCMEM_TEXT_H

#include "daemon/server.h"

/* Takes the descriptor over in any case. */
void text_start(struct server *server, int fd);
void text_end(struct text *text);
struct text *text_next(const struct text *text);

#endif
