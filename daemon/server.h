/* SPDX-License-Identifier: Apache-2.0 */
/* What every connection shares: loop, store, counters, and who may do what. */
#ifndef DCMEM_SERVER_H
#define DCMEM_SERVER_H

#include "daemon/config.h"
#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/ring.h"

#define SERVER_PATIENCE_NS 1000000000ULL /* for a HELLO; untuned */

struct session;
struct text;

/* Captured once, when the connection was accepted. */
struct peer {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	bool is_admin;
};

struct server {
	struct loop *loop;
	struct store *store;
	const struct config *config;
	struct listener control, text;
	struct rings rings;
	struct loop_op store_event, tick, watchdog, signals;
	int signal_fd;
	uint64_t instance, started_ns, watchdog_ns;
	struct session *sessions;
	struct text *texts;
	struct log_limit session_limit; /* lines that clients cause */
	gid_t admin_gid;		/* -1: none */
	bool stopping;
	uint32_t max_connections; /* as configured, or what descriptors allow */
	uint64_t n_connections, n_accepted, n_refused, n_packets, n_protocol_errors, n_text_requests;
};

/* Makes loop, store and sockets. server_deinit() is right after a failure. */
int server_init(struct server *server, const struct config *config);
void server_deinit(struct server *server);
/* Loads the configured models, the loop running. 0 or the failure, with a message. */
int server_preload(struct server *server);
int server_listen(struct server *server);
/* Until a signal ends it; then closes every connection in order. */
int server_run(struct server *server);

/* Fails closed: -errno when the kernel cannot tell who it is. */
int server_identify(const struct server *server, int fd, struct peer *ret_peer);

#endif
