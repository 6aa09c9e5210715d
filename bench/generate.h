/* SPDX-License-Identifier: Apache-2.0 */
/* Writes a generated model: as safetensors, or straight into a container. Memory stays bounded. */
#ifndef GENERATE_H
#define GENERATE_H

#include <stdatomic.h>

#include "generate-model.h"

struct generate_run {
	unsigned n_jobs; /* threads, at least 1; they change no byte */
	const atomic_bool *cancel; /* then -EINTR; may be NULL */
	void (*progress)(void *data, uint64_t done_bytes, uint64_t total_bytes); /* may be NULL */
	void *data;
};

/*
 * A directory with config.json and shards. It must not exist, or be empty; it appears when it is
 * complete. 0 or -errno, with a message.
 */
int generate_directory(const struct generate_model *model, const char *path,
		       const struct generate_run *run);
/* What packing that directory gives, but for the options' text and codecs chosen by fewer samples. */
int generate_container(const struct generate_model *model, const char *path,
		       const struct generate_run *run);

#endif
