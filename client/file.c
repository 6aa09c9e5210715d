/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sidecar files. Embedded: read from the container. Served: asked of the daemon, which sends the
 * blob in a sealed memfd. The hash is verified here either way.
 */
#include "client.h"

#include <string.h>

static int file_check(const struct dcmem *model)
{
	message_clear();
	if (!model)
		return message_set(DCMEM_E_INVALID, "no model");
	if (model->pid != fork_pid())
		return message_set(DCMEM_E_FORKED, "the model was opened by the parent process");
	return 0;
}

/* File i among the verbatim ones; heads of safetensors files are not shown. */
static int file_at(const struct dcmem *model, uint32_t i, uint64_t *ret_id,
		   const struct container_file **ret_file)
{
	uint32_t seen = 0;

	for (uint64_t k = 0; k < model->index.n_files; k++) {
		const struct container_file *file;
		int r = index_file(&model->index, k, &file);

		if (r != 0)
			return r;
		if (file->kind == CONTAINER_FILE_VERBATIM && seen++ == i) {
			*ret_id = k;
			*ret_file = file;
			return 0;
		}
	}
	return message_set(DCMEM_E_NOT_FOUND, "the model has no file %u", i);
}

DCMEM_API uint32_t dcmem_n_files(const struct dcmem *model)
{
	const struct container_file *file;
	uint32_t n = 0;

	for (uint64_t k = 0; k < model->index.n_files; k++)
		n += index_file(&model->index, k, &file) == 0 &&
		     file->kind == CONTAINER_FILE_VERBATIM;
	return n;
}

DCMEM_API int dcmem_file(struct dcmem *model, uint32_t i, struct dcmem_file *ret_file)
{
	const struct container_file *file;
	const char *name;
	uint64_t id;
	int r = file_check(model);

	if (r == 0)
		r = file_at(model, i, &id, &file);
	if (r == 0)
		r = index_file_name(&model->index, file, &name);
	if (r == 0)
		*ret_file = (struct dcmem_file){.name = name, .n_bytes = file->file_bytes};
	return r;
}

static int file_read(const struct dcmem *model, const struct container_file *file, char **ret_text)
{
	_cleanup_(cleanup_memory) void *data = NULL;
	char *text;
	int r = container_read_blob(&model->container, file, &data);

	if (r != 0)
		return r;
	text = memory_strndup(data, file->blob_bytes);
	if (!text)
		return message_set(-ENOMEM, "no memory for %llu bytes",
				   (unsigned long long)file->blob_bytes);
	*ret_text = text;
	return 0;
}

DCMEM_API int dcmem_read_file(struct dcmem *model, const char *name, char **ret_data,
			      size_t *ret_n_bytes)
{
	int r = file_check(model);

	if (r == 0 && !name)
		r = message_set(DCMEM_E_INVALID, "no file name");
	for (uint32_t i = 0; r == 0; i++) {
		const struct container_file *file;
		const char *other;
		char *text;
		uint64_t id;

		r = file_at(model, i, &id, &file);
		if (r == DCMEM_E_NOT_FOUND)
			return message_set(r, "the model has no file '%s'", name);
		if (r == 0)
			r = index_file_name(&model->index, file, &other);
		if (r != 0 || strcmp(other, name) != 0)
			continue;
		r = model->served ? served_file(model, id, file, &text)
				  : file_read(model, file, &text);
		if (r != 0)
			return message_prefix(r, "file '%s'", name);
		*ret_data = text;
		*ret_n_bytes = file->blob_bytes;
		return 0;
	}
	return r;
}
