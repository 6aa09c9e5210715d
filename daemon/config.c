/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration. Owns its strings; refuses unknown keys, duplicate keys, wrong types and values out
 * of range, each with file, key and reason. Used before the loop starts, on the main thread.
 */
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "daemon/log.h"
#include "proto/wire.h"

#define CONFIG_MAX_BYTES (1U << 20)

static const struct planner_model config_default_policy = {
	.weight = 1, .floor = PLANNER_DENSE, .ceiling = PLANNER_RAW, .pin = PLANNER_NO_CLASS};

static uint64_t config_ram_bytes(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);

	return pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes : 1ULL << 30;
}

int config_init(struct config *config)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	char path[4096] = "/run/dcmem/socket";

	*config = (struct config){
		.socket_mode = 0666,
		.text_socket = true,
		.max_clients = 1024,
		.log_level = LOG_LEVEL_INFO,
		.store = {
			.budget_bytes = config_ram_bytes() / 2,
			.chunk_bytes = 64ULL << 20,
			.lease_deadline_ms = 30000,
			.max_leases = 4096,
			.max_user_leases = 65536,
			.huge_pages = true,
			.tune = true,
			.objective = PLANNER_BALANCED,
			.background = 50,
		},
	};
	if (geteuid() != 0 && runtime && runtime[0] == '/')
		snprintf(path, sizeof(path), "%s/dcmem/socket", runtime);
	config->socket = memory_strdup(path);
	return config->socket ? 0 : -ENOMEM;
}

void config_deinit(struct config *config)
{
	memory_free(config->socket);
	memory_free(config->socket_group);
	memory_free(config->admin_group);
	for (size_t i = 0; i < config->n_model_dirs; i++)
		memory_free(config->model_dirs[i]);
	memory_free(config->model_dirs);
	for (size_t i = 0; i < config->n_models; i++) {
		memory_free(config->models[i].path);
		memory_free(config->models[i].name);
	}
	memory_free(config->models);
	*config = (struct config){0};
}

static int config_replace(char **value, const char *text)
{
	char *copy = memory_strdup(text);

	if (!copy)
		return -ENOMEM;
	memory_free(*value);
	*value = copy;
	return 0;
}

int config_set_bytes(uint64_t *value, const char *where, const char *text)
{
	static const struct {
		const char *name;
		uint64_t factor;
	} units[] = {{"", 1},	       {"B", 1},	 {"KiB", 1ULL << 10},
		     {"MiB", 1ULL << 20}, {"GiB", 1ULL << 30}, {"TiB", 1ULL << 40}};
	char *end = NULL;
	unsigned long long number;
	uint64_t bytes;

	errno = 0;
	number = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || errno)
		return message_set(-EINVAL, "%s: \"%s\" is not a size like \"4GiB\" or \"50%%\"",
				   where, text);
	if (!strcmp(end, "%")) {
		if (number < 1 || number > 100)
			return message_set(-EINVAL, "%s: \"%s\" is not between 1%% and 100%%",
					   where, text);
		*value = config_ram_bytes() / 100 * number;
		return 0;
	}
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (strcmp(end, units[i].name))
			continue;
		if (!range_mul(number, units[i].factor, &bytes) || bytes > INT64_MAX)
			return message_set(-ERANGE, "%s: \"%s\" is too large", where, text);
		*value = bytes;
		return 0;
	}
	return message_set(-EINVAL, "%s: unknown unit in \"%s\": use B, KiB, MiB, GiB, TiB or %%",
			   where, text);
}

int config_set_io(struct config *config, const char *where, const char *text)
{
	static const char *const names[] = {
		[LOOP_IO_AUTO] = "auto", [LOOP_IO_URING] = "uring", [LOOP_IO_EPOLL] = "epoll"};

	for (size_t i = 0; i < 3; i++) {
		if (!strcmp(text, names[i])) {
			config->io = (enum loop_io)i;
			config->store.no_uring = config->io == LOOP_IO_EPOLL;
			return 0;
		}
	}
	return message_set(-EINVAL, "%s: \"%s\" is not auto, uring or epoll", where, text);
}

int config_set_socket(struct config *config, const char *where, const char *path)
{
	struct sockaddr_un address;

	if (!path[0] || path[strlen(path) - 1] == '/')
		return message_set(-EINVAL, "%s: \"%s\" is not the path of a socket", where, path);
	if (strlen(path) + sizeof(".text") > sizeof(address.sun_path))
		return message_set(-EINVAL, "%s: longer than %zu bytes, what a socket path may have",
				   where, sizeof(address.sun_path) - sizeof(".text"));
	return config_replace(&config->socket, path);
}

int config_add_model_dir(struct config *config, const char *where, const char *path)
{
	char *copy;
	int r;

	if (path[0] != '/')
		return message_set(-EINVAL, "%s: \"%s\" is not an absolute path", where, path);
	r = memory_grow((void **)&config->model_dirs, &config->model_dirs_capacity,
			config->n_model_dirs, config->n_model_dirs + 1, sizeof(char *));
	if (r < 0)
		return r;
	copy = memory_strdup(path);
	if (!copy)
		return -ENOMEM;
	config->model_dirs[config->n_model_dirs++] = copy;
	return 0;
}

int config_add_model(struct config *config, const char *where, const char *path, const char *name)
{
	struct config_model model = {.policy = config_default_policy};
	int r;

	if (!path[0])
		return message_set(-EINVAL, "%s: the path is empty", where);
	if (name && !wire_name_is_valid(name, strlen(name)))
		return message_set(-EINVAL,
				   "%s: \"%s\" is not a model name ([A-Za-z0-9._-], at most %d bytes)",
				   where, name, WIRE_MAX_NAME);
	r = memory_grow((void **)&config->models, &config->models_capacity, config->n_models,
			config->n_models + 1, sizeof(model));
	if (r < 0)
		return r;
	model.path = memory_strdup(path);
	model.name = name ? memory_strdup(name) : NULL;
	if (!model.path || (name && !model.name)) {
		memory_free(model.path);
		memory_free(model.name);
		return -ENOMEM;
	}
	config->models[config->n_models++] = model;
	return 0;
}

/* --- keys: each takes the JSON value and says what is wrong with it --------------------------- */

static int config_want_string(const json_t *value, const char *where, const char **ret_text)
{
	const char *text = json_string_value(value);

	if (!text)
		return message_set(-EINVAL, "%s: must be a string", where);
	if (strlen(text) != json_string_length(value))
		return message_set(-EINVAL, "%s: has a zero byte", where);
	*ret_text = text;
	return 0;
}

static int config_want_bool(const json_t *value, const char *where, bool *ret_value)
{
	if (!json_is_boolean(value))
		return message_set(-EINVAL, "%s: must be true or false", where);
	*ret_value = json_is_true(value);
	return 0;
}

static int config_want_u32(const json_t *value, const char *where, uint32_t min, uint32_t max,
			   uint32_t *ret_value)
{
	json_int_t number = json_integer_value(value);

	if (!json_is_integer(value) || number < (json_int_t)min || number > (json_int_t)max)
		return message_set(-EINVAL, "%s: must be a whole number from %u to %u", where, min,
				   max);
	*ret_value = (uint32_t)number;
	return 0;
}

static int config_want_bytes(const json_t *value, const char *where, uint64_t *ret_bytes)
{
	const char *text;
	int r;

	if (json_is_integer(value)) {
		if (json_integer_value(value) < 0)
			return message_set(-EINVAL, "%s: is negative", where);
		*ret_bytes = (uint64_t)json_integer_value(value);
		return 0;
	}
	r = config_want_string(value, where, &text);
	if (r < 0)
		return message_set(r, "%s: must be a number of bytes or a string like \"4GiB\"",
				   where);
	return config_set_bytes(ret_bytes, where, text);
}

static int config_key_socket(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	int r = config_want_string(value, where, &text);

	return r < 0 ? r : config_set_socket(config, where, text);
}

static int config_key_socket_mode(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	char *end;
	unsigned long mode;
	int r = config_want_string(value, where, &text);

	if (r < 0)
		return r;
	mode = strtoul(text, &end, 8);
	if (text[0] < '0' || text[0] > '7' || *end || mode > 0777)
		return message_set(-EINVAL, "%s: \"%s\" is not an octal mode like \"0660\"", where,
				   text);
	config->socket_mode = (mode_t)mode;
	return 0;
}

static int config_key_group(char **group, const json_t *value, const char *where)
{
	const char *text;
	int r;

	if (json_is_null(value)) {
		*group = memory_free(*group);
		return 0;
	}
	r = config_want_string(value, where, &text);
	if (r < 0)
		return r;
	if (!text[0])
		return message_set(-EINVAL, "%s: is empty; use null for no group", where);
	return config_replace(group, text);
}

static int config_key_socket_group(struct config *config, const json_t *value, const char *where)
{
	return config_key_group(&config->socket_group, value, where);
}

static int config_key_admin_group(struct config *config, const json_t *value, const char *where)
{
	return config_key_group(&config->admin_group, value, where);
}

static int config_key_text_socket(struct config *config, const json_t *value, const char *where)
{
	return config_want_bool(value, where, &config->text_socket);
}

static int config_key_budget(struct config *config, const json_t *value, const char *where)
{
	return config_want_bytes(value, where, &config->store.budget_bytes);
}

static int config_key_chunk(struct config *config, const json_t *value, const char *where)
{
	return config_want_bytes(value, where, &config->store.chunk_bytes);
}

static int config_key_workers(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 0, 1024, &config->store.n_workers);
}

static int config_key_deadline(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 0, 86400000, &config->store.lease_deadline_ms);
}

static int config_key_max_clients(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 1, 65536, &config->max_clients);
}

static int config_key_max_leases(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 1, 1000000, &config->store.max_leases);
}

static int config_key_max_user_leases(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 1, 100000000, &config->store.max_user_leases);
}

static int config_key_huge_pages(struct config *config, const json_t *value, const char *where)
{
	return config_want_bool(value, where, &config->store.huge_pages);
}

static int config_key_numa(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	char *end;
	unsigned long node;
	int r = config_want_string(value, where, &text);

	if (r < 0)
		return r;
	if (!strcmp(text, "local")) {
		config->store.numa = STORE_NUMA_LOCAL;
	} else if (!strcmp(text, "interleave")) {
		config->store.numa = STORE_NUMA_INTERLEAVE;
	} else if (!strcmp(text, "replicate")) {
		config->store.numa = STORE_NUMA_REPLICATE;
	} else if (!strncmp(text, "bind:", 5)) {
		node = strtoul(text + 5, &end, 10);
		if (text[5] < '0' || text[5] > '9' || *end || node > 1023)
			return message_set(-EINVAL, "%s: \"%s\" does not name a node", where, text);
		config->store.numa = STORE_NUMA_BIND;
		config->store.numa_node = (uint32_t)node;
	} else {
		return message_set(-EINVAL,
				   "%s: \"%s\" is not local, interleave, replicate or bind:N",
				   where, text);
	}
	return 0;
}

static int config_key_objective(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	int r = config_want_string(value, where, &text);

	if (r < 0)
		return r;
	config->store.tune = strcmp(text, "off") != 0;
	if (!config->store.tune)
		return 0;
	for (unsigned i = 0; i < PLANNER_N_OBJECTIVES; i++) {
		if (!strcmp(text, planner_objective_name(i))) {
			config->store.objective = i;
			return 0;
		}
	}
	return message_set(-EINVAL, "%s: \"%s\" is not latency, balanced, memory or off", where, text);
}

static int config_key_background(struct config *config, const json_t *value, const char *where)
{
	return config_want_u32(value, where, 1, 100, &config->store.background);
}

static int config_key_io(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	int r = config_want_string(value, where, &text);

	return r < 0 ? r : config_set_io(config, where, text);
}

static int config_key_model_dirs(struct config *config, const json_t *value, const char *where)
{
	if (!json_is_array(value))
		return message_set(-EINVAL, "%s: must be a list of directories", where);
	for (size_t i = 0; i < json_array_size(value); i++) {
		const char *text;
		int r = config_want_string(json_array_get(value, i), where, &text);

		if (!r)
			r = config_add_model_dir(config, where, text);
		if (r < 0)
			return r;
	}
	return 0;
}

static int config_want_class(const json_t *value, const char *where, const char *key, uint8_t none,
			     uint8_t *ret_class)
{
	const char *text;
	int r = config_want_string(value, where, &text);

	if (r < 0)
		return r;
	*ret_class = none;
	if (!strcmp(text, "none"))
		return 0;
	for (unsigned i = 0; i < PLANNER_N_CLASSES; i++) {
		if (!strcmp(text, planner_class_name(i))) {
			*ret_class = (uint8_t)i;
			return 0;
		}
	}
	return message_set(-EINVAL, "%s: \"%s\" is raw, fast, work, dense or none", where, key);
}

/* A member of a model's entry that says how it may be held. 1: it is none. */
static int config_policy_member(struct planner_model *policy, const char *key, const json_t *value,
				const char *where)
{
	if (!strcmp(key, "pin"))
		return config_want_class(value, where, key, PLANNER_NO_CLASS, &policy->pin);
	if (!strcmp(key, "floor"))
		return config_want_class(value, where, key, PLANNER_DENSE, &policy->floor);
	if (!strcmp(key, "ceiling"))
		return config_want_class(value, where, key, PLANNER_RAW, &policy->ceiling);
	if (!strcmp(key, "limit"))
		return config_want_bytes(value, where, &policy->max_bytes);
	if (!strcmp(key, "frozen"))
		return config_want_bool(value, where, &policy->frozen);
	if (strcmp(key, "weight"))
		return 1;
	if (!json_is_number(value) || json_number_value(value) < 0 || json_number_value(value) > 1e6)
		return message_set(-EINVAL, "%s: \"weight\" is a number from 0 to 10^6", where);
	policy->weight = (float)json_number_value(value);
	return 0;
}

static int config_model_entry(struct config *config, json_t *entry, const char *where, size_t i)
{
	struct planner_model policy = config_default_policy;
	const char *key, *path = NULL, *name = NULL;
	json_t *member;
	int r = 0;

	if (!json_is_object(entry))
		return message_set(-EINVAL, "%s: entry %zu is not an object", where, i);
	json_object_foreach(entry, key, member) {
		if (!strcmp(key, "path"))
			r = config_want_string(member, where, &path);
		else if (!strcmp(key, "name"))
			r = config_want_string(member, where, &name);
		else
			r = config_policy_member(&policy, key, member, where);
		if (r > 0)
			return message_set(-EINVAL, "%s: entry %zu has an unknown key \"%s\"", where,
					   i, key);
		if (r < 0)
			return r;
	}
	if (!path)
		return message_set(-EINVAL, "%s: entry %zu lacks \"path\"", where, i);
	if (policy.floor < policy.ceiling)
		return message_set(-EINVAL, "%s: entry %zu has a floor faster than its ceiling", where,
				   i);
	r = config_add_model(config, where, path, name);
	if (!r)
		config->models[config->n_models - 1].policy = policy;
	return r;
}

static int config_key_models(struct config *config, const json_t *value, const char *where)
{
	if (!json_is_array(value))
		return message_set(-EINVAL, "%s: must be a list of objects", where);
	for (size_t i = 0; i < json_array_size(value); i++) {
		int r = config_model_entry(config, json_array_get(value, i), where, i);

		if (r < 0)
			return r;
	}
	return 0;
}

static int config_key_log_level(struct config *config, const json_t *value, const char *where)
{
	const char *text;
	int r = config_want_string(value, where, &text), level;

	if (r < 0)
		return r;
	level = log_level_from_name(text);
	if (level < 0)
		return message_set(-EINVAL,
				   "%s: \"%s\" is not error, warning, notice, info or debug", where,
				   text);
	config->log_level = level;
	return 0;
}

static const struct {
	const char *key;
	int (*set)(struct config *config, const json_t *value, const char *where);
} config_keys[] = {
	{"socket", config_key_socket},
	{"socket_mode", config_key_socket_mode},
	{"socket_group", config_key_socket_group},
	{"text_socket", config_key_text_socket},
	{"admin_group", config_key_admin_group},
	{"budget", config_key_budget},
	{"chunk", config_key_chunk},
	{"workers", config_key_workers},
	{"lease_deadline_ms", config_key_deadline},
	{"max_clients", config_key_max_clients},
	{"max_leases", config_key_max_leases},
	{"max_user_leases", config_key_max_user_leases},
	{"huge_pages", config_key_huge_pages},
	{"numa", config_key_numa},
	{"objective", config_key_objective},
	{"background", config_key_background},
	{"io", config_key_io},
	{"model_dirs", config_key_model_dirs},
	{"models", config_key_models},
	{"log_level", config_key_log_level},
};

static int config_apply(struct config *config, const char *name, json_t *root)
{
	const char *key;
	json_t *value;

	json_object_foreach(root, key, value) {
		char where[4600];
		size_t i, n = sizeof(config_keys) / sizeof(config_keys[0]);
		int r;

		for (i = 0; i < n && strcmp(config_keys[i].key, key); i++)
			;
		if (i == n)
			return message_set(-EINVAL, "%s: unknown key \"%s\"", name, key);
		snprintf(where, sizeof(where), "%s: key \"%s\"", name, key);
		r = config_keys[i].set(config, value, where);
		if (r < 0)
			return r;
	}
	return 0;
}

int config_parse(struct config *config, const char *name, const char *text, size_t n_bytes)
{
	json_error_t error;
	json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
	int r;

	if (!root)
		return message_set(-EINVAL, "%s: line %d: %s", name, error.line, error.text);
	if (json_is_object(root))
		r = config_apply(config, name, root);
	else
		r = message_set(-EINVAL, "%s: must hold one JSON object", name);
	json_decref(root);
	return r < 0 ? r : 0;
}

int config_read(struct config *config, const char *path)
{
	_cleanup_(cleanup_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_(cleanup_memory) char *text = NULL;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return message_set(-errno, "%s: cannot read the configuration: %s", path,
				   strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size > CONFIG_MAX_BYTES)
		return message_set(-EINVAL, "%s: not a regular file of at most 1 MiB", path);
	text = memory_zalloc((size_t)st.st_size + 1);
	if (!text)
		return -ENOMEM;
	r = io_read_at(fd, text, (size_t)st.st_size, 0);
	if (r < 0)
		return message_set(r, "%s: cannot read the configuration: %s", path, strerror(-r));
	return config_parse(config, path, text, (size_t)st.st_size);
}

int config_check(const struct config *config)
{
	const struct store_config *store = &config->store;

	if (store->budget_bytes < 1U << 20)
		return message_set(-EINVAL, "budget: less than 1 MiB holds no model");
	if (store->chunk_bytes < 1U << 20 || store->chunk_bytes > 1ULL << 32)
		return message_set(-EINVAL, "chunk: must be from 1 MiB to 4 GiB");
	return 0;
}
