/* SPDX-License-Identifier: Apache-2.0 */
/* Configuration: defaults, a JSON file over them, flags over both (man/dcmemd.json.5). */
#ifndef DCMEM_CONFIG_H
#define DCMEM_CONFIG_H

#include <stddef.h>
#include <sys/types.h>

#include "daemon/loop.h"
#include "daemon/store.h"

struct config_model {
	char *path, *name; /* name NULL: that of the file */
	struct planner_model policy;
};

struct config {
	char *socket; /* path of the control socket; the text socket adds ".text" */
	mode_t socket_mode;
	char *socket_group, *admin_group; /* NULL: none */
	bool text_socket;
	uint32_t max_clients;
	enum loop_io io;
	int log_level;
	char **model_dirs; /* absolute; "/" allows every file */
	size_t n_model_dirs, model_dirs_capacity;
	struct config_model *models;
	size_t n_models, models_capacity;
	struct store_config store;
};

/* Fills in defaults; config_deinit() is right after any failure. */
int config_init(struct config *config);
void config_deinit(struct config *config);
/* -EINVAL with a message that names file, key and reason; other negative errno when unreadable. */
int config_read(struct config *config, const char *path);
/* The same on a text; `name` stands for the file. */
int config_parse(struct config *config, const char *name, const char *text, size_t n_bytes);

/* Single values, as flags give them. `where` begins the message. */
int config_set_bytes(uint64_t *value, const char *where, const char *text);
int config_set_io(struct config *config, const char *where, const char *text);
int config_set_socket(struct config *config, const char *where, const char *path);
int config_add_model_dir(struct config *config, const char *where, const char *path);
/* name may be NULL */
int config_add_model(struct config *config, const char *where, const char *path, const char *name);
/* What only the whole can tell: the socket path fits, chunk within budget. */
int config_check(const struct config *config);

#endif
