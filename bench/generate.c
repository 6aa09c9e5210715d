/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the pages of a generated model in batches on several threads and writes each batch in order
 * from the calling one, so that memory is that of a batch and of the tables. What is not complete
 * is removed.
 */
#include "generate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/parallel.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/pack.h"
#include "model/writer.h"

#define SLOTS_A_JOB  8
#define LEAST_SAVING 100 /* one part in 100, or raw, as the packer has it */
#define CLOSE_ENOUGH 250 /* a faster codec may cost a 250th more */
#define MAX_CHOICES  32  /* kinds and sizes of tensors that one model has */

struct slot {
	uint64_t tensor, page;
	uint8_t *decoded, *stored;
	uint32_t n_bytes;
	struct container_page record;
	struct codec_context *codec; /* NULL where pages are not encoded */
	int result;
};

struct choice {
	enum generate_kind kind;
	uint64_t n_bytes;
	uint8_t codec;
};

struct batch {
	const struct generate_model *model;
	const struct generate_run *run;
	struct slot *slots;
	size_t n_slots, n; /* n of them filled */
	uint64_t tensor, page; /* next */
	uint64_t done_bytes;
	struct choice choices[MAX_CHOICES];
	unsigned n_choices;
};

static int no_memory(void)
{
	return message_set(-ENOMEM, "not enough memory to generate");
}

static struct batch *batch_free(struct batch *batch)
{
	for (size_t i = 0; batch && batch->slots && i < batch->n_slots; i++) {
		memory_free(batch->slots[i].decoded);
		memory_free(batch->slots[i].stored);
		codec_context_free(batch->slots[i].codec);
	}
	if (batch)
		memory_free(batch->slots);
	return memory_free(batch);
}

static void cleanup_batch(struct batch **batch)
{
	*batch = batch_free(*batch);
}

static int batch_new(struct batch **ret_batch, const struct generate_model *model,
		     const struct generate_run *run, bool encodes)
{
	_cleanup_(cleanup_batch) struct batch *batch = memory_zalloc(sizeof(*batch));

	if (!batch)
		return no_memory();
	batch->model = model;
	batch->run = run;
	batch->n_slots = SLOTS_A_JOB * (size_t)run->n_jobs;
	batch->slots = memory_zalloc(batch->n_slots * sizeof(*batch->slots));
	for (size_t i = 0; batch->slots && i < batch->n_slots; i++) {
		struct slot *slot = &batch->slots[i];

		slot->decoded = memory_alloc(PACK_PAGE_BYTES);
		slot->stored = encodes ? memory_alloc(PACK_PAGE_BYTES) : NULL;
		slot->codec = encodes ? codec_context_new_encoder() : NULL;
		if (!slot->decoded || (encodes && (!slot->stored || !slot->codec)))
			return no_memory();
	}
	if (!batch->slots)
		return no_memory();
	*ret_batch = TAKE(batch);
	return 0;
}

/* --- codecs --- */

/* Encodes a page, or leaves it raw. Every encoded page decodes: codec tests hold that. */
static int encode(struct codec_context *codec, uint8_t id, struct slot *slot, size_t *ret_bytes)
{
	int r = id == CODEC_RAW ? CODEC_E_INCOMPRESSIBLE :
				  codec_encode(codec, id, 1, slot->decoded, slot->n_bytes,
					       slot->stored, slot->n_bytes - 1, ret_bytes);

	if (r == CODEC_E_INCOMPRESSIBLE)
		*ret_bytes = slot->n_bytes;
	return r;
}

/* Of the first page: the fastest to decode that is close to the smallest. */
static uint8_t measure_codec(struct batch *batch, uint64_t tensor)
{
	uint32_t dtype = batch->model->tensors[tensor].dtype;
	uint8_t ids[CODEC_MAX_CANDIDATES];
	unsigned n_ids = codec_candidates(dtype, ids);
	struct slot *slot = &batch->slots[0];
	size_t n[CODEC_MAX_CANDIDATES], best, worth;

	slot->n_bytes = generate_page(batch->model, tensor, 0, slot->decoded);
	worth = slot->n_bytes - div_up(slot->n_bytes, LEAST_SAVING);
	best = worth + 1;
	for (unsigned k = 0; k < n_ids; k++) {
		n[k] = slot->n_bytes;
		if (encode(slot->codec, ids[k], slot, &n[k]) < 0)
			n[k] = slot->n_bytes;
		best = min_u64(best, n[k]);
	}
	for (unsigned k = 0; best <= worth && k < n_ids; k++)
		if (n[k] <= best + best / CLOSE_ENOUGH)
			return ids[k];
	return CODEC_RAW;
}

/* Equal kinds of equal size have equal statistics. Only between batches: it uses a slot. */
static uint8_t codec_of(struct batch *batch, uint64_t tensor)
{
	const struct generate_tensor *t = &batch->model->tensors[tensor];
	uint8_t codec;

	for (unsigned i = 0; i < batch->n_choices; i++)
		if (batch->choices[i].kind == t->kind && batch->choices[i].n_bytes == t->n_bytes)
			return batch->choices[i].codec;
	codec = measure_codec(batch, tensor);
	if (batch->n_choices < MAX_CHOICES)
		batch->choices[batch->n_choices++] = (struct choice){ t->kind, t->n_bytes, codec };
	return codec;
}

/* --- batches --- */

static void make_slot(void *data, size_t i)
{
	struct batch *batch = data;
	struct slot *slot = &batch->slots[i];
	size_t n;

	slot->n_bytes = generate_page(batch->model, slot->tensor, slot->page, slot->decoded);
	slot->result = 0;
	if (!slot->codec)
		return;
	n = slot->n_bytes;
	slot->result = encode(slot->codec, slot->record.codec, slot, &n);
	if (slot->result == CODEC_E_INCOMPRESSIBLE) {
		slot->record.codec = CODEC_RAW;
		slot->result = 0;
	}
	slot->record.stored_bytes = (uint32_t)n;
	slot->record.decoded_hash = hash_64(slot->decoded, slot->n_bytes);
	slot->record.stored_hash = slot->record.codec == CODEC_RAW ?
					   slot->record.decoded_hash : hash_64(slot->stored, n);
}

/* The next pages before tensor `end`. 0 or -errno; batch->n is 0 when there are none. */
static int batch_next(struct batch *batch, uint64_t end)
{
	const struct generate_run *run = batch->run;

	for (batch->n = 0; batch->n < batch->n_slots && batch->tensor < end; batch->n++) {
		struct slot *slot = &batch->slots[batch->n];
		/* Measured before the slots are filled. */
		uint8_t codec = slot->codec ? codec_of(batch, batch->tensor) : CODEC_RAW;

		slot->tensor = batch->tensor;
		slot->page = batch->page++;
		slot->record = (struct container_page){ .codec = codec };
		if (batch->page == generate_n_pages(&batch->model->tensors[batch->tensor])) {
			batch->tensor++;
			batch->page = 0;
		}
	}
	if (run->cancel && atomic_load(run->cancel))
		return message_set(-EINTR, "stopped by a signal");
	parallel_for(run->n_jobs, batch->n, make_slot, batch);
	for (size_t i = 0; i < batch->n; i++) {
		if (batch->slots[i].result)
			return message_set(-EIO, "cannot encode a page of %s",
					   batch->model->tensors[batch->slots[i].tensor].name);
		batch->done_bytes += batch->slots[i].n_bytes;
	}
	if (run->progress)
		run->progress(run->data, batch->done_bytes, batch->model->n_bytes);
	return 0;
}

/* --- a directory --- */

static int write_failed(const char *path)
{
	int r = errno ? -errno : -EIO;

	return message_set(r, "cannot write %s: %s", path, strerror(-r));
}

static int close_file(FILE *file, const char *path, int result)
{
	errno = 0;
	if (!result && (fflush(file) != 0 || fsync(fileno(file)) != 0))
		result = write_failed(path);
	if (fclose(file) != 0 && !result)
		result = write_failed(path);
	return result;
}

static int write_shard(struct batch *batch, unsigned shard, FILE *file, const char *path)
{
	uint64_t end = generate_shard_first(batch->model, shard + 1), head_bytes;
	_cleanup_(cleanup_memory) char *head = NULL;
	int r = generate_shard_head(batch->model, shard, &head, &head_bytes);

	if (r)
		return no_memory();
	if (fwrite(head, 1, head_bytes, file) != head_bytes)
		return write_failed(path);
	do {
		r = batch_next(batch, end);
		for (size_t i = 0; i < batch->n && !r; i++)
			if (fwrite(batch->slots[i].decoded, 1, batch->slots[i].n_bytes, file) !=
			    batch->slots[i].n_bytes)
				r = write_failed(path);
	} while (!r && batch->n);
	return r;
}

static int write_text(const char *directory, const char *name, const char *text)
{
	char path[4200];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wxe");
	if (!file || fputs(text, file) < 0) {
		int r = write_failed(path);

		if (file)
			fclose(file);
		return r;
	}
	return close_file(file, path, 0);
}

static int write_files(struct batch *batch, const char *directory)
{
	const struct generate_model *model = batch->model;
	int r = write_text(directory, "config.json", model->config);

	if (!r && model->index)
		r = write_text(directory, "model.safetensors.index.json", model->index);
	for (unsigned shard = 0; shard < model->options.n_shards && !r; shard++) {
		char path[4200], name[64];
		FILE *file;

		generate_shard_name(model, shard, name);
		snprintf(path, sizeof(path), "%s/%s", directory, name);
		file = fopen(path, "wxe");
		if (!file)
			return write_failed(path);
		r = close_file(file, path, write_shard(batch, shard, file, path));
	}
	return r;
}

static void remove_files(const struct generate_model *model, const char *directory)
{
	char path[4200], name[64];

	for (unsigned shard = 0; shard < model->options.n_shards; shard++) {
		generate_shard_name(model, shard, name);
		snprintf(path, sizeof(path), "%s/%s", directory, name);
		(void)unlink(path);
	}
	snprintf(path, sizeof(path), "%s/config.json", directory);
	(void)unlink(path);
	snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory);
	(void)unlink(path);
	(void)rmdir(directory);
}

int generate_directory(const struct generate_model *model, const char *path,
		       const struct generate_run *run)
{
	_cleanup_(cleanup_batch) struct batch *batch = NULL;
	char directory[4100];
	size_t n = strlen(path);
	int r = batch_new(&batch, model, run, false);

	while (n > 1 && path[n - 1] == '/')
		n--;
	if (r)
		return r;
	if (n == 0 || n > 4000)
		return message_set(-EINVAL, "not the name of a directory: '%.100s'", path);
	/* Said before an hour of work; rename() decides. */
	if (access(path, F_OK) == 0 && rmdir(path) != 0)
		return message_set(-errno, "%s: exists, and is no empty directory", path);
	snprintf(directory, sizeof(directory), "%.*s.tmp-%ld", (int)n, path, (long)getpid());
	if (mkdir(directory, 0777) != 0)
		return message_set(-errno, "cannot make %s: %s", directory, strerror(errno));
	r = write_files(batch, directory);
	if (!r && rename(directory, path) != 0)
		r = message_set(-errno, "cannot rename %s to %s: %s", directory, path,
				strerror(errno));
	if (r)
		remove_files(model, directory);
	return r;
}

/* --- a container --- */

static int begin_tensor(struct batch *batch, struct writer *writer, uint64_t id, unsigned file)
{
	const struct generate_tensor *tensor = &batch->model->tensors[id];
	struct container_tensor record = {
		.dtype = (uint16_t)tensor->dtype,
		.n_dims = (uint16_t)tensor->n_dims,
		.dims = { tensor->dims[0], tensor->dims[1] },
		.n_bytes = tensor->n_bytes,
		.page_bytes = generate_page_bytes(tensor),
		.file = file,
		.file_offset = tensor->offset,
	};
	bool raw = false;

	/* Known since its first page was made. */
	for (unsigned i = 0; i < batch->n_choices; i++)
		if (batch->choices[i].kind == tensor->kind &&
		    batch->choices[i].n_bytes == tensor->n_bytes)
			raw = batch->choices[i].codec == CODEC_RAW;
	return writer_tensor_begin(writer, tensor->name, (uint32_t)strlen(tensor->name), &record,
				   raw);
}

static int write_tensors(struct batch *batch, struct writer *writer, unsigned shard,
			 struct hash_stream *hash)
{
	const struct generate_model *model = batch->model;
	uint64_t end = generate_shard_first(model, shard + 1);
	int r;

	do {
		r = batch_next(batch, end);
		for (size_t i = 0; i < batch->n && !r; i++) {
			struct slot *slot = &batch->slots[i];
			const struct generate_tensor *tensor = &model->tensors[slot->tensor];

			if (slot->page == 0)
				r = begin_tensor(batch, writer, slot->tensor, 1 + shard);
			hash_stream_update(hash, slot->decoded, slot->n_bytes);
			if (!r)
				r = writer_page(writer, &slot->record,
						slot->record.codec == CODEC_RAW ? slot->decoded :
										  slot->stored);
			if (!r && slot->page + 1 == generate_n_pages(tensor))
				r = writer_tensor_end(writer);
		}
	} while (!r && batch->n);
	return r;
}

static int write_companions(const struct generate_model *model, struct writer *writer)
{
	int r = 0;

	for (uint64_t i = 0; i + 1 < model->n_tensors && !r; i++) {
		struct container_companion companion = { .tensor = i, .companion = i + 1,
							 .relation = DCMEM_REL_SCALE, .scheme = 1,
							 .axis = 0 };

		if (model->tensors[i + 1].kind == GENERATE_SCALES)
			r = writer_companion(writer, &companion);
	}
	return r;
}

static int write_blob(struct writer *writer, const char *name, const char *text)
{
	uint8_t hash[16];
	size_t n = strlen(text);
	int r = writer_file_begin(writer, name, CONTAINER_FILE_VERBATIM);

	hash_128(text, n, hash);
	if (!r)
		r = writer_file_data(writer, text, n);
	return r ? r : writer_file_end(writer, n, hash);
}

/* In bytewise order of names: config.json, the shards, their index. */
static int write_container(struct batch *batch, struct writer *writer, uint8_t (*hashes)[16])
{
	const struct generate_model *model = batch->model;
	unsigned n_shards = model->options.n_shards;
	struct hash_stream *hash = hash_stream_new();
	char name[64], text[256];
	int r = hash ? 0 : no_memory();

	for (unsigned shard = 0; shard < n_shards && !r; shard++) {
		_cleanup_(cleanup_memory) char *head = NULL;
		uint64_t n;

		r = generate_shard_head(model, shard, &head, &n);
		if (r)
			break;
		hash_stream_reset(hash);
		hash_stream_update(hash, head, n);
		r = write_tensors(batch, writer, shard, hash);
		hash_stream_128(hash, hashes[shard]);
	}
	hash_stream_free(hash);
	if (!r)
		r = write_companions(model, writer);
	if (!r)
		r = write_blob(writer, "config.json", model->config);
	for (unsigned shard = 0; shard < n_shards && !r; shard++) {
		_cleanup_(cleanup_memory) char *head = NULL;
		uint64_t last = generate_shard_first(model, shard + 1) - 1, n;

		r = generate_shard_head(model, shard, &head, &n);
		if (r)
			break;
		generate_shard_name(model, shard, name);
		r = writer_file_begin(writer, name, CONTAINER_FILE_SAFETENSORS);
		if (!r)
			r = writer_file_data(writer, head, n);
		if (!r)
			r = writer_file_end(writer,
					    n + model->tensors[last].offset +
						    model->tensors[last].n_bytes,
					    hashes[shard]);
	}
	if (!r && model->index)
		r = write_blob(writer, "model.safetensors.index.json", model->index);
	snprintf(text, sizeof(text), "generated shape=%s seed=%llu page=%u", model->options.shape,
		 (unsigned long long)model->options.seed, PACK_PAGE_BYTES);
	return r ? r : writer_commit(writer, text);
}

int generate_container(const struct generate_model *model, const char *path,
		       const struct generate_run *run)
{
	_cleanup_(cleanup_memory) void *hashes = memory_alloc(16 * (size_t)model->options.n_shards);
	_cleanup_(cleanup_batch) struct batch *batch = NULL;
	struct writer *writer = NULL;
	uint64_t total = 0;
	struct stat st;
	int r = hashes ? batch_new(&batch, model, run, true) : no_memory();

	if (r)
		return r;
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		return message_set(-EEXIST, "%s: exists, and is no regular file", path);
	for (uint64_t i = 0; i < model->n_tensors; i++)
		total += align_up(model->tensors[i].n_bytes, CONTAINER_ALIGN);
	r = writer_new(&writer, path, total);
	if (!r)
		r = write_container(batch, writer, hashes);
	writer_free(writer);
	return r;
}
