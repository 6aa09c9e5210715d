/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON commands. Refuses what is not an object with a known "cmd" and members of the right type, and
 * loading by those who may not. Loop thread; a load outlives the connection that asked for it.
 */
#include "daemon/admin.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "daemon/admin-impl.h"
#include "daemon/stats.h"
#include "dcmem/dcmem.h"
#include "model/index.h"
#include "proto/wire.h"

#define ADMIN_MAX_TENSORS 1000 /* of one reply; untuned */

struct admin_call {
	void (*done)(void *data, char *reply);
	void *data;
	char *name;
};

static void admin_json_free(void *memory)
{
	memory_free(memory);
}

void admin_setup(void)
{
	json_set_alloc_funcs(memory_alloc, admin_json_free);
}

char *admin_dump(json_t *value)
{
	char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

	json_decref(value);
	return text;
}

char *admin_failure(int result, const char *message)
{
	json_t *o = json_object(), *text;

	if (!message || !message[0])
		message = result < 0 ? strerror(-result) : "refused";
	text = json_string(message);
	json_object_set_new(o, "ok", json_false());
	json_object_set_new(o, "code", json_integer(result));
	/* A message may quote bytes that are not UTF-8. */
	json_object_set_new(o, "error", text ? text : json_string("refused (text is not UTF-8)"));
	return admin_dump(o);
}

static char *admin_success(const char *key, const char *value)
{
	json_t *o = json_object();

	json_object_set_new(o, "ok", json_true());
	if (key)
		json_object_set_new(o, key, json_string(value));
	return admin_dump(o);
}

/* A member that must be a string (or may be missing). */
int admin_string(const json_t *object, const char *key, bool needed, const char **ret_text)
{
	const json_t *value = json_object_get(object, key);

	if (!value || json_is_null(value)) {
		if (needed)
			return message_set(DCMEM_E_INVALID, "the command lacks \"%s\"", key);
		*ret_text = NULL;
		return 0;
	}
	if (!json_is_string(value) ||
	    strlen(json_string_value(value)) != json_string_length(value))
		return message_set(DCMEM_E_INVALID, "\"%s\" must be a string without zero bytes",
				   key);
	*ret_text = json_string_value(value);
	return 0;
}

int admin_number(const json_t *object, const char *key, uint64_t missing, uint64_t *ret_number)
{
	const json_t *value = json_object_get(object, key);

	if (!value || json_is_null(value)) {
		*ret_number = missing;
		return 0;
	}
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return message_set(DCMEM_E_INVALID, "\"%s\" must be a whole number, 0 or more", key);
	*ret_number = (uint64_t)json_integer_value(value);
	return 0;
}

int admin_name(const json_t *object, const char *key, bool needed, const char **ret_name)
{
	const char *name;
	int r = admin_string(object, key, needed, &name);

	if (r)
		return r;
	if (name && !wire_name_is_valid(name, strlen(name)))
		return message_set(DCMEM_E_INVALID, "\"%s\" is not a model name", key);
	*ret_name = name;
	return 0;
}

/* --- load and unload -------------------------------------------------------------------------- */

static bool admin_is_inside(const char *path, const char *dir)
{
	char real[PATH_MAX];
	size_t n;

	if (!realpath(dir, real))
		return false;
	n = strlen(real);
	return n == 1 || (!strncmp(path, real, n) && path[n] == '/');
}

static int admin_check_path(const struct server *server, const char *path, char real[PATH_MAX])
{
	const struct config *config = server->config;

	if (path[0] != '/')
		return message_set(DCMEM_E_INVALID, "\"path\" must be absolute");
	if (!realpath(path, real))
		return message_set(errno == ENOENT ? DCMEM_E_NOT_FOUND : -errno, "%s: %s", path,
				   strerror(errno));
	for (size_t i = 0; i < config->n_model_dirs; i++)
		if (admin_is_inside(real, config->model_dirs[i]))
			return 0;
	return message_set(DCMEM_E_DENIED, "%s: not inside a directory of \"model_dirs\"", path);
}

int admin_check_rights(const struct admin_request *request)
{
	if (request->peer->is_admin)
		return 0;
	return message_set(DCMEM_E_DENIED,
			   "user %u may not do that: root, the daemon's user and members of "
			   "\"admin_group\" may",
			   (unsigned)request->peer->uid);
}

static void admin_loaded(void *data, int result, const char *message)
{
	struct admin_call *call = data;

	if (result)
		log_line(LOG_LEVEL_WARNING, "loading \"%s\" failed: %s", call->name,
			 message ? message : strerror(result < 0 ? -result : EINVAL));
	else
		log_line(LOG_LEVEL_NOTICE, "loaded \"%s\"", call->name);
	if (call->done)
		call->done(call->data, result ? admin_failure(result, message)
					      : admin_success("name", call->name));
	memory_free(call->name);
	memory_free(call);
}

void admin_abandon(struct admin_call *call)
{
	if (call)
		call->done = NULL;
}

/* The name a container gets when none is given: its file's, without .dcmem. */
static char *admin_default_name(const char *path)
{
	const char *base = strrchr(path, '/') + 1;
	size_t n = strlen(base);

	if (n > 6 && !strcmp(base + n - 6, ".dcmem"))
		n -= 6;
	return memory_strndup(base, n);
}

static int admin_load(struct admin_request *request, const json_t *command)
{
	char real[PATH_MAX];
	const char *path, *name;
	struct admin_call *call;
	int r = admin_check_rights(request);

	if (!r)
		r = admin_string(command, "path", true, &path);
	if (!r)
		r = admin_name(command, "name", false, &name);
	if (!r)
		r = admin_check_path(request->server, path, real);
	if (r)
		return r;
	call = memory_zalloc(sizeof(*call));
	if (!call)
		return -ENOMEM;
	call->done = request->done;
	call->data = request->data;
	call->name = name ? memory_strdup(name) : admin_default_name(path);
	if (!call->name) {
		memory_free(call);
		return -ENOMEM;
	}
	r = wire_name_is_valid(call->name, strlen(call->name))
		    ? 0
		    : message_set(DCMEM_E_INVALID,
				  "the file's name is not a model name: give a \"name\"");
	if (!r)
		r = store_load(request->server->store, real, call->name, admin_loaded, call);
	if (r && r != STORE_PENDING) {
		memory_free(call->name);
		memory_free(call);
		return r;
	}
	request->call = call;
	return STORE_PENDING;
}

static int admin_unload(struct admin_request *request, const json_t *command)
{
	const char *name;
	int r = admin_check_rights(request);

	if (!r)
		r = admin_name(command, "name", true, &name);
	if (!r)
		r = store_unload(request->server->store, name);
	if (r)
		return r;
	log_line(LOG_LEVEL_NOTICE, "unloaded \"%s\"", name);
	request->reply = admin_success("name", name);
	return 0;
}

/* --- tensors ---------------------------------------------------------------------------------- */

static int admin_tensor_list(const struct index *index, uint64_t first, uint64_t count,
			     json_t *list)
{
	for (uint64_t id = first; id < index->n_tensors && id - first < count; id++) {
		const struct container_tensor *tensor;
		const char *name;
		json_t *o, *shape;
		int r = index_tensor(index, id, &tensor);

		if (!r)
			r = index_tensor_name(index, tensor, &name);
		if (r)
			return r;
		o = json_object();
		shape = json_array();
		json_object_set_new(o, "id", json_integer((json_int_t)id));
		json_object_set_new(o, "name", json_string(name));
		json_object_set_new(o, "dtype", json_string(dtype_name(tensor->dtype)));
		for (unsigned i = 0; i < tensor->n_dims; i++)
			json_array_append_new(shape, json_integer((json_int_t)tensor->dims[i]));
		json_object_set_new(o, "shape", shape);
		json_object_set_new(o, "n_bytes", json_integer((json_int_t)tensor->n_bytes));
		json_array_append_new(list, o);
	}
	return 0;
}

static int admin_map_tensors(const struct store_attachment *attachment, uint64_t first,
			     uint64_t count, json_t *list)
{
	struct index index;
	void *bytes = mmap(NULL, attachment->index_bytes, PROT_READ, MAP_SHARED,
			   attachment->index_fd, 0);
	int r;

	if (bytes == MAP_FAILED)
		return -errno;
	r = index_init(&index, bytes, attachment->index_bytes);
	if (!r)
		r = admin_tensor_list(&index, first, count, list);
	munmap(bytes, attachment->index_bytes);
	return r;
}

static int admin_tensors(struct admin_request *request, const json_t *command)
{
	struct store_client *client = NULL;
	struct store_attachment attachment;
	const char *model;
	uint64_t first, count;
	json_t *o, *list;
	int r = admin_name(command, "model", true, &model);

	if (!r)
		r = admin_number(command, "first", 0, &first);
	if (!r)
		r = admin_number(command, "count", ADMIN_MAX_TENSORS, &count);
	if (!r)
		r = store_client_new(request->server->store, request->peer->uid,
				     request->peer->pid, &client);
	if (r)
		return r;
	r = store_attach(client, model, &attachment);
	if (r) {
		store_client_free(client, true);
		return r;
	}
	o = json_object();
	list = json_array();
	json_object_set_new(o, "ok", json_true());
	json_object_set_new(o, "n_tensors", json_integer((json_int_t)attachment.n_tensors));
	json_object_set_new(o, "tensors", list);
	count = min_u64(count, ADMIN_MAX_TENSORS);
	r = admin_map_tensors(&attachment, first, count, list);
	close_fd(attachment.index_fd);
	close_fd(attachment.placement_fd);
	(void)store_detach(client, attachment.model);
	store_client_free(client, true);
	if (r) {
		json_decref(o);
		return r;
	}
	if (first < attachment.n_tensors && count < attachment.n_tensors - first)
		json_object_set_new(o, "next", json_integer((json_int_t)(first + count)));
	request->reply = admin_dump(o);
	return 0;
}

/* --- the table -------------------------------------------------------------------------------- */

static int admin_stats(struct admin_request *request, const json_t *command)
{
	request->reply = admin_dump(stats_report(request->server));
	return 0;
}

static int admin_status(struct admin_request *request, const json_t *command)
{
	request->reply = admin_dump(stats_status(request->server));
	return 0;
}

static int admin_list(struct admin_request *request, const json_t *command)
{
	json_t *o = json_object();

	json_object_set_new(o, "ok", json_true());
	json_object_set_new(o, "models", stats_models(request->server));
	request->reply = admin_dump(o);
	return 0;
}

static int admin_read(struct admin_request *request, const json_t *command)
{
	struct admin_read *read = &request->read;
	const char *model, *tensor;
	int r = admin_name(command, "model", true, &model);

	if (!r)
		r = admin_string(command, "tensor", true, &tensor);
	if (!r)
		r = admin_number(command, "offset", 0, &read->offset);
	if (!r)
		r = admin_number(command, "length", UINT64_MAX, &read->n_bytes);
	if (r)
		return r;
	snprintf(read->model, sizeof(read->model), "%s", model);
	read->tensor = memory_strdup(tensor);
	return read->tensor ? 0 : -ENOMEM;
}

static const struct {
	const char *name;
	int (*run)(struct admin_request *request, const json_t *command);
	const char *members; /* that it knows, with a blank after each */
} admin_commands[] = {
	{"stats", admin_stats, ""},
	{"status", admin_status, ""},
	{"list", admin_list, ""},
	{"load", admin_load, "path name "},
	{"unload", admin_unload, "name "},
	{"tensors", admin_tensors, "model first count "},
	{"read", admin_read, "model tensor offset length "},
	{"tune", admin_tune,
	 "model explain first count objective budget background frozen weight pin floor ceiling limit tensors "},
};

static bool admin_knows_member(const char *members, const char *key)
{
	size_t n = strlen(key);

	for (const char *p = members; *p; p = strchr(p, ' ') + 1)
		if (!strncmp(p, key, n) && p[n] == ' ')
			return true;
	return false;
}

static int admin_dispatch(struct admin_request *request, json_t *command,
			  enum admin_outcome *ret_outcome)
{
	const char *name, *key;
	json_t *value;
	int r = admin_string(command, "cmd", true, &name);

	if (r)
		return r;
	for (size_t i = 0; i < sizeof(admin_commands) / sizeof(admin_commands[0]); i++) {
		if (strcmp(admin_commands[i].name, name))
			continue;
		json_object_foreach(command, key, value) {
			if (strcmp(key, "cmd") && !admin_knows_member(admin_commands[i].members, key))
				return message_set(DCMEM_E_INVALID,
						   "command \"%s\" has no member \"%s\"", name, key);
		}
		r = admin_commands[i].run(request, command);
		if (r && r != STORE_PENDING)
			return r;
		*ret_outcome = r == STORE_PENDING		      ? ADMIN_PENDING
			       : admin_commands[i].run == admin_read ? ADMIN_READ
								      : ADMIN_REPLY;
		return 0;
	}
	return message_set(DCMEM_E_INVALID, "unknown command \"%.64s\"", name);
}

enum admin_outcome admin_run(struct admin_request *request, const char *text, size_t n_bytes)
{
	enum admin_outcome outcome = ADMIN_REPLY;
	json_error_t error;
	json_t *command = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
	int r;

	message_clear();
	request->reply = NULL;
	request->call = NULL;
	request->read = (struct admin_read){0};
	if (!command)
		r = message_set(DCMEM_E_INVALID, "not JSON: %s", error.text);
	else if (!json_is_object(command))
		r = message_set(DCMEM_E_INVALID, "a command is a JSON object");
	else
		r = admin_dispatch(request, command, &outcome);
	json_decref(command);
	if (r)
		request->reply = admin_failure(r, message_get());
	return outcome;
}
