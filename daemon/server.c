/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server: one loop, one store, two listeners, and every connection. Owns them all, starts and
 * ends them in order. Refuses connections beyond max_clients. Everything here runs on the main
 * thread, which is the loop's.
 */
#include "daemon/server.h"

#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "daemon/admin.h"
#include "daemon/notify.h"
#include "daemon/session.h"
#include "daemon/text.h"

#define SERVER_MAX_GROUPS 4096
#define STORE_FILES 4096 /* descriptors kept for segments and arenas: 16 models of 250 segments */

/* --- who it is -------------------------------------------------------------------------------- */

static int server_in_group(int fd, const struct peer *peer, gid_t group, bool *ret_inside)
{
	_cleanup_(cleanup_memory) gid_t *groups = NULL;
	socklen_t n_bytes = SERVER_MAX_GROUPS * sizeof(gid_t);

	if (peer->gid == group) {
		*ret_inside = true;
		return 0;
	}
	groups = memory_alloc(n_bytes);
	if (!groups)
		return -ENOMEM;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &n_bytes) < 0)
		return -errno;
	*ret_inside = false;
	for (size_t i = 0; i < n_bytes / sizeof(gid_t); i++)
		if (groups[i] == group)
			*ret_inside = true;
	return 0;
}

int server_identify(const struct server *server, int fd, struct peer *ret_peer)
{
	struct ucred cred;
	socklen_t n_bytes = sizeof(cred);
	struct peer peer;
	int r = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n_bytes) < 0)
		return -errno;
	peer = (struct peer){.uid = cred.uid, .gid = cred.gid, .pid = cred.pid};
	peer.is_admin = cred.uid == 0 || cred.uid == geteuid();
	if (!peer.is_admin && server->admin_gid != (gid_t)-1)
		r = server_in_group(fd, &peer, server->admin_gid, &peer.is_admin);
	if (!r)
		*ret_peer = peer;
	return r;
}

static int server_group(const char *key, const char *name, gid_t *ret_gid)
{
	const struct group *group;

	if (!name) {
		*ret_gid = (gid_t)-1;
		return 0;
	}
	group = getgrnam(name);
	if (!group)
		return message_set(-EINVAL, "key \"%s\": there is no group \"%s\"", key, name);
	*ret_gid = group->gr_gid;
	return 0;
}

/* --- connections ------------------------------------------------------------------------------ */

static bool server_admits(struct server *server, int fd)
{
	server->n_accepted++;
	if (!server->stopping && server->n_connections < server->max_connections)
		return true;
	server->n_refused++;
	if (!server->stopping && log_limit_allows(&server->session_limit, 10))
		log_line(LOG_LEVEL_WARNING, "a client was turned away: %u are connected already",
			 server->max_connections);
	close_fd(fd);
	return false;
}

static void server_accepted(void *data, int fd)
{
	if (server_admits(data, fd))
		session_start(data, fd);
}

static void server_accepted_text(void *data, int fd)
{
	if (server_admits(data, fd))
		text_start(data, fd);
}

/* --- events ----------------------------------------------------------------------------------- */

static void server_store_event(struct loop_op *op, int result)
{
	struct server *server = op->data;

	if (result >= 0)
		store_dispatch(server->store);
}

static void server_tick(struct loop_op *op, int result)
{
	struct server *server = op->data;
	uint64_t next;

	if (server->stopping || result < 0)
		return;
	next = store_tick(server->store);
	(void)loop_timer(server->loop, op, next, server_tick);
}

static void server_feed_watchdog(struct loop_op *op, int result)
{
	struct server *server = op->data;
	struct store_stats stats;
	char text[200];

	if (server->stopping || result < 0)
		return;
	store_get_stats(server->store, &stats);
	snprintf(text, sizeof(text),
		 "WATCHDOG=1\nSTATUS=%" PRIu64 " models, %" PRIu64 " connections, %" PRIu64
		 " MiB of %" PRIu64 " MiB held",
		 stats.n_models, server->n_connections,
		 (stats.compressed_bytes + stats.index_bytes + stats.decoded_bytes +
		  stats.retired_bytes) >> 20,
		 stats.budget_bytes >> 20);
	notify_send(text);
	(void)loop_timer(server->loop, op, clock_now_ns() + server->watchdog_ns,
			 server_feed_watchdog);
}

static void server_stop(struct server *server)
{
	struct session *session;
	struct text *text;

	if (server->stopping)
		return;
	server->stopping = true;
	notify_send("STOPPING=1");
	if (server->control.loop)
		listener_stop(&server->control);
	if (server->text.loop)
		listener_stop(&server->text);
	for (session = server->sessions; session; session = session_next(session))
		session_end(session);
	for (text = server->texts; text; text = text_next(text))
		text_end(text);
	loop_cancel(server->loop, &server->tick);
	loop_cancel(server->loop, &server->watchdog);
	loop_stop(server->loop);
}

static void server_signal(struct loop_op *op, int result)
{
	struct server *server = op->data;
	struct signalfd_siginfo info;

	if (result < 0)
		return;
	while (read(server->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			log_line(LOG_LEVEL_NOTICE,
				 "SIGHUP ignored: a changed configuration needs a restart");
			continue;
		}
		log_line(LOG_LEVEL_NOTICE, "signal %u: stopping", info.ssi_signo);
		server_stop(server);
	}
}

/* --- life ------------------------------------------------------------------------------------- */

static int server_watch_signals(struct server *server)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	/* Before any other thread starts, so that all of them inherit it. */
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	server->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return server->signal_fd < 0 ? -errno : 0;
}

/*
 * Asks for as many descriptors as the system allows and keeps some of them from clients, so that
 * the store can make segments and arenas whoever connects.
 */
static void server_limit_connections(struct server *server)
{
	struct rlimit limit;
	uint64_t n_files, kept;

	server->max_connections = server->config->max_clients;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	if (limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
		(void)getrlimit(RLIMIT_NOFILE, &limit);
	}
	n_files = limit.rlim_cur;
	kept = n_files / 2 < STORE_FILES ? n_files / 2 : STORE_FILES;
	if (n_files - kept >= server->max_connections)
		return;
	server->max_connections = (uint32_t)(n_files - kept);
	log_line(LOG_LEVEL_WARNING,
		 "%llu descriptors are allowed: at most %u clients, not max_clients %u; raise LimitNOFILE",
		 (unsigned long long)n_files, server->max_connections, server->config->max_clients);
}

int server_init(struct server *server, const struct config *config)
{
	gid_t socket_gid = (gid_t)-1;
	int r;

	*server = (struct server){.config = config, .signal_fd = -1};
	server->store_event.data = server->tick.data = server;
	server->watchdog.data = server->signals.data = server;
	server->started_ns = clock_now_ns();
	server_limit_connections(server);
	if (getrandom(&server->instance, sizeof(server->instance), 0) < 0)
		return message_set(-errno, "no random numbers: %s", strerror(errno));
	server->instance |= !server->instance;
	r = server_group("admin_group", config->admin_group, &server->admin_gid);
	if (!r)
		r = server_group("socket_group", config->socket_group, &socket_gid);
	if (!r)
		r = server_watch_signals(server);
	if (!r)
		r = loop_new(config->io, &server->loop);
	if (!r)
		rings_init(&server->rings, server->loop);
	if (!r)
		r = store_new(&config->store, &server->store);
	if (!r)
		r = loop_poll(server->loop, &server->store_event, store_event_fd(server->store),
			      POLLIN, server_store_event);
	if (!r)
		r = loop_poll(server->loop, &server->signals, server->signal_fd, POLLIN,
			      server_signal);
	if (!r)
		r = loop_timer(server->loop, &server->tick, clock_now_ns(), server_tick);
	return r;
}

/* The directory of the default socket of a user may have to be made. */
static void server_make_directory(const char *path)
{
	char dir[4096];
	char *slash;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (slash && slash != dir) {
		*slash = '\0';
		(void)mkdir(dir, 0755);
	}
}

int server_listen(struct server *server)
{
	const struct config *config = server->config;
	char path[4096];
	int control, text, r;
	gid_t group = (gid_t)-1;

	r = notify_listen_fds(&control, &text);
	if (!r)
		r = server_group("socket_group", config->socket_group, &group);
	if (r < 0)
		return r;
	if (control < 0)
		server_make_directory(config->socket);
	r = listener_init(&server->control, server->loop, config->socket, control, SOCK_SEQPACKET,
			  config->socket_mode, group);
	if (r < 0)
		return r;
	/* The manager that passes one socket decides about the other too. */
	if (text >= 0 || (config->text_socket && control < 0)) {
		snprintf(path, sizeof(path), "%s.text", config->socket);
		r = listener_init(&server->text, server->loop, path, text, SOCK_STREAM,
				  config->socket_mode, group);
		if (r < 0)
			return r;
		r = listener_start(&server->text, server_accepted_text, server);
		if (r < 0)
			return message_set(r, "cannot accept on %s: %s", path, strerror(-r));
	}
	r = listener_start(&server->control, server_accepted, server);
	return r < 0 ? message_set(r, "cannot accept on %s: %s", config->socket, strerror(-r)) : 0;
}

struct server_load {
	struct server *server;
	int result;
	bool done;
	char message[1024];
};

static void server_loaded(void *data, int result, const char *message)
{
	struct server_load *load = data;

	load->result = result;
	load->done = true;
	snprintf(load->message, sizeof(load->message), "%s", message ? message : "");
}

int server_preload(struct server *server)
{
	const struct config *config = server->config;

	for (size_t i = 0; i < config->n_models && !server->stopping; i++) {
		const struct config_model *model = &config->models[i];
		struct server_load load = {.server = server};
		int r;

		message_clear();
		r = store_load(server->store, model->path, model->name, server_loaded, &load);
		if (r && r != STORE_PENDING)
			return message_get()[0]
				       ? r
				       : message_set(r, "%s: cannot be loaded", model->path);
		/* A signal does not abandon it: the callback points here. */
		while (!load.done) {
			r = loop_turn(server->loop, UINT64_MAX);
			if (r < 0)
				return r;
		}
		if (load.result)
			return message_set(load.result, "%s",
					   load.message[0] ? load.message : "cannot load a model");
		r = store_set_newest_policy(server->store, &model->policy);
		if (r)
			return r;
		log_line(LOG_LEVEL_NOTICE, "loaded %s", model->path);
	}
	return 0;
}

static bool server_is_busy(const struct server *server)
{
	return server->sessions || server->texts || server->tick.active ||
	       server->watchdog.active ||
	       (server->control.loop && !listener_is_idle(&server->control)) ||
	       (server->text.loop && !listener_is_idle(&server->text)) ||
	       server->store_event.active || server->signals.active;
}

int server_run(struct server *server)
{
	int r = 0;

	server->watchdog_ns = notify_watchdog_ns();
	notify_send("READY=1\nSTATUS=listening");
	if (server->watchdog_ns)
		r = loop_timer(server->loop, &server->watchdog, clock_now_ns(),
			       server_feed_watchdog);
	if (!r && !server->stopping)
		r = loop_run(server->loop);
	return r;
}

void server_deinit(struct server *server)
{
	if (server->loop) {
		server_stop(server);
		loop_cancel(server->loop, &server->store_event);
		loop_cancel(server->loop, &server->signals);
		while (server_is_busy(server) && loop_turn(server->loop, UINT64_MAX) >= 0)
			;
		listener_deinit(&server->control);
		listener_deinit(&server->text);
	}
	server->store = store_free(server->store);
	server->loop = loop_free(server->loop);
	server->signal_fd = close_fd(server->signal_fd);
}
