/* SPDX-License-Identifier: Apache-2.0 */
/* Administration: JSON requests over a connection of their own. Any thread. */
#include "client.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

#define REPLY_MAX (1ULL << 30) /* of a JSON text in a memfd; untuned */

struct dcmem_conn {
	pid_t pid;
	bool reconnect;
	struct transport transport;
};

DCMEM_API int dcmem_connect(const struct dcmem_options *options, struct dcmem_conn **ret_conn)
{
	struct transport_options transport;
	struct dcmem_conn *conn;
	int r;

	message_clear();
	if (!ret_conn || (options && options->size != sizeof(*options)))
		return message_set(DCMEM_E_INVALID, "options of another size");
	r = transport_options_init(&transport, options);
	if (r != 0)
		return r;
	conn = memory_zalloc(sizeof(*conn));
	if (!conn)
		return message_set(-ENOMEM, "no memory for a connection");
	conn->pid = fork_pid();
	conn->reconnect = !(options && options->flags & DCMEM_OPEN_NO_RECONNECT);
	transport_init(&conn->transport, &transport);
	pthread_mutex_lock(&conn->transport.lock);
	r = transport_connect(&conn->transport);
	pthread_mutex_unlock(&conn->transport.lock);
	if (r != 0) {
		transport_deinit(&conn->transport);
		memory_free(conn);
		return r == -ENOTCONN ? DCMEM_E_DISCONNECTED : r;
	}
	*ret_conn = conn;
	return 0;
}

DCMEM_API struct dcmem_conn *dcmem_disconnect(struct dcmem_conn *conn)
{
	if (!conn)
		return NULL;
	if (conn->pid != fork_pid()) {
		conn->transport.fd = close_fd(conn->transport.fd);
		return NULL;
	}
	transport_deinit(&conn->transport);
	return memory_free(conn);
}

static int conn_text(const struct transport_reply *reply, char **ret_text)
{
	struct stat st;
	char *text;
	int r;

	if (!(reply->message.header.flags & WIRE_FLAG_IN_MEMFD)) {
		text = memory_strndup(reply->message.text, reply->message.text_bytes);
		if (!text)
			return -ENOMEM;
		*ret_text = text;
		return 0;
	}
	if (fstat(reply->fds[0], &st) < 0)
		return -errno;
	if (st.st_size <= 0 || (uint64_t)st.st_size > REPLY_MAX)
		return message_set(DCMEM_E_PROTOCOL, "the daemon sent an empty or huge reply");
	text = memory_alloc((size_t)st.st_size + 1);
	if (!text)
		return -ENOMEM;
	r = io_read_at(reply->fds[0], text, (size_t)st.st_size, 0);
	if (r < 0) {
		memory_free(text);
		return r;
	}
	text[st.st_size] = '\0';
	*ret_text = text;
	return 0;
}

/*
 * A refusal is {"ok":false,"code":N,"error":"TEXT"} in exactly this form (docs/protocol.md), so that
 * it needs no JSON parser here. Returns N with TEXT as the message, or 0 for any other reply.
 */
static int conn_refusal(const char *reply)
{
	static const char head[] = "{\"ok\":false,\"code\":", middle[] = ",\"error\":\"";
	char text[512]; /* cut beyond */
	size_t n = 0;
	char *end;
	long code;

	if (strncmp(reply, head, sizeof(head) - 1) != 0)
		return 0;
	code = strtol(reply + sizeof(head) - 1, &end, 10);
	if (code == 0 || code < -4095 || code > 255 ||
	    strncmp(end, middle, sizeof(middle) - 1) != 0)
		return message_set(DCMEM_E_PROTOCOL, "the daemon refused, and does not say why");
	for (end += sizeof(middle) - 1; *end && *end != '"' && n < sizeof(text); end++) {
		if (end[0] == '\\' && (end[1] == '"' || end[1] == '\\' || end[1] == '/'))
			end++;
		text[n++] = *end;
	}
	return message_set((int)code, "%.*s", (int)n, text);
}

DCMEM_API int dcmem_request(struct dcmem_conn *conn, const char *json, char **ret_reply)
{
	_cleanup_(cleanup_memory) char *text = NULL;
	struct transport_reply reply;
	struct transport *t;
	int r;

	message_clear();
	if (!conn || !json || !*json || !ret_reply)
		return message_set(DCMEM_E_INVALID, "no connection, request or place for the reply");
	if (conn->pid != fork_pid())
		return message_set(DCMEM_E_FORKED, "the connection belongs to the parent process");
	t = &conn->transport;
	pthread_mutex_lock(&t->lock);
	/* A request that was sent is never sent again: it may have been carried out. */
	r = t->fd < 0 && conn->reconnect ? transport_connect(t) : 0;
	if (r == 0)
		r = transport_request(t, WIRE_JSON, NULL, 0, json, strlen(json), &reply);
	pthread_mutex_unlock(&t->lock);
	if (r == -ENOTCONN)
		return DCMEM_E_DISCONNECTED;
	if (r != 0)
		return r;
	r = conn_text(&reply, &text);
	transport_reply_close(&reply);
	if (r == 0)
		r = conn_refusal(text);
	if (r == 0)
		*ret_reply = TAKE(text);
	return r;
}
