/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text socket: one line of JSON in, one line out, in order; after the line of a "read" come the
 * decoded bytes, sent window by window straight from the arena. A window is released when its send
 * has completed, never before. Refuses lines over 64 KiB. A client that closes its sending half still
 * gets its answers. Loop thread.
 */
#include "daemon/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "daemon/admin.h"

#define TEXT_MAX_LINE 65536
#define TEXT_WINDOW_BYTES (4U << 20) /* acquired at a time for a read; untuned */

struct text_read {
	bool running, holds;
	uint64_t model, tensor, page_bytes;
	uint64_t offset, end, total;
	struct store_window window;
};

struct text {
	struct server *server;
	struct text *next, **link;
	struct peer peer;
	int fd;
	struct store_client *client; /* made by the first read */
	struct loop_op recv, send, reap;
	bool ending, reaping, eof, too_long, waiting;
	struct admin_call *call;
	struct text_read read;
	struct msghdr in, out;
	struct iovec in_vector, out_vectors[2];
	char *reply; /* being sent */
	char head[96];
	size_t n_line;
	char line[TEXT_MAX_LINE];
};

static void text_received(struct loop_op *op, int result);
static void text_sent(struct loop_op *op, int result);
static void text_advance(struct text *text);
static void text_read_more(struct text *text);

struct text *text_next(const struct text *text)
{
	return text->next;
}

static void text_read_stop(struct text *text)
{
	struct text_read *read = &text->read;

	if (read->holds)
		(void)store_release(text->client, read->window.lease);
	read->holds = false;
	if (read->running)
		(void)store_detach(text->client, read->model);
	read->running = false;
}

static void text_try_free(struct text *text)
{
	if (!text->reaping || text->recv.active || text->send.active)
		return;
	if (text->client) {
		/* Windows never left the daemon, so nobody can hold on to them. */
		text_read_stop(text);
		store_client_free(text->client, true);
	}
	admin_abandon(text->call);
	memory_free(text->reply);
	loop_close(text->server->loop, text->fd);
	*text->link = text->next;
	if (text->next)
		text->next->link = text->link;
	text->server->n_connections--;
	memory_free(text);
}

static void text_reap(struct loop_op *op, int result)
{
	struct text *text = op->data;

	text->reaping = true;
	admin_abandon(TAKE(text->call));
	text_try_free(text);
}

void text_end(struct text *text)
{
	if (text->ending)
		return;
	text->ending = true;
	loop_cancel(text->server->loop, &text->recv);
	loop_cancel(text->server->loop, &text->send);
	(void)loop_timer(text->server->loop, &text->reap, 0, text_reap);
}

/* --- sending ---------------------------------------------------------------------------------- */

static void text_send(struct text *text)
{
	if (loop_send(text->server->loop, &text->send, text->fd, &text->out, text_sent) < 0)
		text_end(text);
}

static void text_set_parts(struct text *text, const void *head, size_t head_bytes, const void *tail,
			   size_t tail_bytes)
{
	text->out_vectors[0] = (struct iovec){(void *)(uintptr_t)head, head_bytes};
	text->out_vectors[1] = (struct iovec){(void *)(uintptr_t)tail, tail_bytes};
	text->out = (struct msghdr){.msg_iov = text->out_vectors, .msg_iovlen = 2};
}

/* Takes the reply over. */
static void text_reply(struct text *text, char *reply)
{
	memory_free(text->reply);
	text->reply = reply;
	if (!reply) {
		text_end(text);
		return;
	}
	text_set_parts(text, reply, strlen(reply), "\n", 1);
	text_send(text);
}

/* Forgets n bytes of the parts; true when nothing is left. */
static bool text_consume(struct text *text, size_t n)
{
	struct iovec *v = text->out_vectors;

	for (int i = 0; i < 2; i++) {
		size_t part = n < v[i].iov_len ? n : v[i].iov_len;

		v[i].iov_base = (char *)v[i].iov_base + part;
		v[i].iov_len -= part;
		n -= part;
	}
	return !v[0].iov_len && !v[1].iov_len;
}

static void text_sent(struct loop_op *op, int result)
{
	struct text *text = op->data;

	if (text->ending) {
		text_try_free(text);
		return;
	}
	if (result < 0) {
		text_end(text);
		return;
	}
	if (!text_consume(text, (size_t)result)) {
		text_send(text);
		return;
	}
	text->reply = memory_free(text->reply);
	if (text->read.running)
		text_read_more(text);
	else
		text_advance(text);
}

/* --- read ------------------------------------------------------------------------------------- */

static void text_read_fail(struct text *text, int result, const char *message)
{
	bool begun = text->head[0] == '\0';
	char *reply = begun ? NULL : admin_failure(result, message);

	text_read_stop(text);
	/* After the first bytes only hanging up can say that the rest is missing. */
	if (begun) {
		if (log_limit_allows(&text->server->session_limit, 10))
			log_line(LOG_LEVEL_WARNING, "a read broke off: %s", message ? message : "");
		text_end(text);
		return;
	}
	text_reply(text, reply);
}

static void text_read_window(struct text *text)
{
	struct text_read *read = &text->read;
	uint64_t start = read->window.first_page * read->page_bytes, skip, n;

	if (read->offset < start || read->offset - start >= read->window.n_bytes) {
		text_read_fail(text, -EIO, "the store gave another window than asked for");
		return;
	}
	skip = read->offset - start;
	n = min_u64(read->window.n_bytes - skip, read->end - read->offset);
	text_set_parts(text, text->head, strlen(text->head),
		       (const char *)read->window.data + skip, n);
	read->offset += n;
	text_send(text);
}

static void text_acquired(void *data, int result, const struct store_window *window,
			  const char *message)
{
	struct text *text = data;

	text->waiting = false;
	if (!result) {
		text->read.window = *window;
		text->read.holds = true;
	}
	if (text->ending)
		return; /* its release comes with the end */
	if (result)
		text_read_fail(text, result, message);
	else
		text_read_window(text);
}

/* The head was sent with the first window: an empty text_head says so. */
static void text_read_more(struct text *text)
{
	struct text_read *read = &text->read;
	uint64_t first, n_pages;
	int r;

	if (read->holds) {
		(void)store_release(text->client, read->window.lease);
		read->holds = false;
		text->head[0] = '\0';
	}
	if (read->offset == read->end) {
		text_read_stop(text);
		text_advance(text);
		return;
	}
	first = read->offset / read->page_bytes;
	n_pages = max_u64(1, TEXT_WINDOW_BYTES / read->page_bytes);
	n_pages = min_u64(n_pages, div_up(read->end, read->page_bytes) - first);
	message_clear();
	r = store_acquire(text->client, read->model, read->tensor, first, n_pages, text_acquired,
			  text, &read->window);
	if (r == STORE_PENDING) {
		text->waiting = true;
	} else if (r) {
		text_read_fail(text, r, message_get());
	} else {
		read->holds = true;
		text_read_window(text);
	}
}

static int text_read_prepare(struct text *text, const struct admin_read *request)
{
	struct text_read *read = &text->read;
	struct store_attachment attachment;
	struct store_tensor tensor;
	uint64_t end;
	int r = 0;

	if (!text->client)
		r = store_client_new(text->server->store, text->peer.uid, text->peer.pid,
				     &text->client);
	if (!r)
		r = store_find_tensor(text->server->store, request->model, request->tensor, &tensor);
	if (r)
		return r;
	if (request->offset > tensor.n_bytes)
		return message_set(STORE_E_INVALID, "\"offset\" is behind the end at %" PRIu64,
				   tensor.n_bytes);
	end = tensor.n_bytes;
	if (request->n_bytes != UINT64_MAX &&
	    (!range_add(request->offset, request->n_bytes, &end) || end > tensor.n_bytes))
		return message_set(STORE_E_INVALID, "the range ends behind the end at %" PRIu64,
				   tensor.n_bytes);
	r = store_attach(text->client, request->model, &attachment);
	if (r)
		return r;
	close_fd(attachment.index_fd);
	close_fd(attachment.placement_fd);
	*read = (struct text_read){.running = true,
				   .model = attachment.model,
				   .tensor = tensor.id,
				   .page_bytes = max_u64(1, tensor.page_bytes),
				   .offset = request->offset,
				   .end = end};
	snprintf(text->head, sizeof(text->head), "{\"ok\":true,\"n_bytes\":%" PRIu64 "}\n",
		 end - request->offset);
	return 0;
}

static void text_read(struct text *text, struct admin_read *request)
{
	int r;

	message_clear();
	r = text_read_prepare(text, request);
	request->tensor = memory_free(request->tensor);
	if (r) {
		text_reply(text, admin_failure(r, message_get()));
	} else if (text->read.offset == text->read.end) {
		text_set_parts(text, text->head, strlen(text->head), "", 0);
		text_send(text);
	} else {
		text_read_more(text);
	}
}

/* --- lines ------------------------------------------------------------------------------------ */

static void text_administered(void *data, char *reply)
{
	struct text *text = data;

	text->call = NULL;
	text->waiting = false;
	if (text->ending)
		memory_free(reply);
	else
		text_reply(text, reply);
}

static void text_run(struct text *text, const char *line, size_t n_bytes)
{
	struct admin_request request = {.server = text->server,
					.peer = &text->peer,
					.done = text_administered,
					.data = text};

	text->server->n_text_requests++;
	switch (admin_run(&request, line, n_bytes)) {
	case ADMIN_PENDING:
		text->call = request.call;
		text->waiting = true;
		break;
	case ADMIN_READ:
		text_read(text, &request.read);
		break;
	case ADMIN_REPLY:
		text_reply(text, request.reply);
		break;
	}
}

static void text_receive(struct text *text)
{
	text->in_vector = (struct iovec){text->line + text->n_line, TEXT_MAX_LINE - text->n_line};
	text->in = (struct msghdr){.msg_iov = &text->in_vector, .msg_iovlen = 1};
	if (loop_recv(text->server->loop, &text->recv, text->fd, &text->in, text_received) < 0)
		text_end(text);
}

/* Does the next thing there is to do, one request at a time. */
static void text_advance(struct text *text)
{
	while (!text->ending && !text->waiting && !text->send.active && !text->recv.active) {
		char *newline = memchr(text->line, '\n', text->n_line);
		size_t n_line = newline ? (size_t)(newline - text->line) : text->n_line;
		size_t n_used = newline ? n_line + 1 : n_line;

		if (text->too_long) {
			text_end(text);
			return;
		}
		if (!newline && n_line == TEXT_MAX_LINE) {
			text->too_long = true;
			text->server->n_protocol_errors++;
			text_reply(text, admin_failure(STORE_E_INVALID, "a line over 64 KiB"));
			return;
		}
		if (!newline && !text->eof) {
			text_receive(text);
			return;
		}
		if (!newline && !n_line) {
			text_end(text);
			return;
		}
		while (n_line && (text->line[n_line - 1] == '\r' || text->line[n_line - 1] == ' '))
			n_line--;
		/* The command copies what it keeps, so its line may go when it has run. */
		if (n_line)
			text_run(text, text->line, n_line);
		memmove(text->line, text->line + n_used, text->n_line - n_used);
		text->n_line -= n_used;
	}
}

static void text_received(struct loop_op *op, int result)
{
	struct text *text = op->data;

	if (text->ending) {
		text_try_free(text);
		return;
	}
	if (result < 0) {
		text_end(text);
		return;
	}
	if (!result)
		text->eof = true;
	text->n_line += (size_t)result;
	text_advance(text);
}

void text_start(struct server *server, int fd)
{
	struct text *text = memory_zalloc(sizeof(*text));
	int r = text ? server_identify(server, fd, &text->peer) : -ENOMEM;

	if (r) {
		if (log_limit_allows(&server->session_limit, 10))
			log_line(LOG_LEVEL_WARNING, "cannot serve a text client: %s", strerror(-r));
		memory_free(text);
		loop_close(server->loop, fd);
		return;
	}
	text->server = server;
	text->fd = fd;
	text->recv.data = text->send.data = text->reap.data = text;
	text->next = server->texts;
	text->link = &server->texts;
	if (text->next)
		text->next->link = &text->next;
	server->texts = text;
	server->n_connections++;
	text_receive(text);
}
