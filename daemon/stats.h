/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon can tell about itself, as JSON (docs/protocol.md). New references; NULL: no memory. */
#ifndef DCMEM_STATS_H
#define DCMEM_STATS_H

struct json_t;
struct server;

struct json_t *stats_report(const struct server *server);
struct json_t *stats_models(const struct server *server);
struct json_t *stats_status(const struct server *server);

#endif
