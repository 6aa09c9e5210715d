/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipeline of packing: one thread reads pages in order and hashes files, n_jobs threads encode,
 * the calling thread writes in order. Pages travel in a ring of slots, numbered by tickets, so that
 * memory stays bounded and the order of the output is that of the reading.
 *
 *   reader: read_next ->   encoders: encode_next ->   writer: write_next
 *   write_next <= encode_next <= read_next <= write_next + n_slots
 *
 * A slot belongs to the thread that its ticket has reached; `lock` guards everything else. Every
 * encoded page is decoded again and compared before it counts.
 */
#include "model/pack.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/hints.h"
#include "model/plan.h"
#include "model/source.h"
#include "model/writer.h"

#define MAX_JOBS    512
#define COPY_BYTES  (1U << 20)
#define SLOTS_A_JOB 4 /* enough that nobody waits for one slow page: untuned */

struct slot {
	uint8_t *decoded, *stored; /* PACK_PAGE_BYTES each */
	uint32_t decoded_bytes;
	uint8_t codec; /* of the tensor */
	struct container_page page;
	const uint8_t *bytes; /* what is stored: `decoded` or `stored` */
	bool encoded;
};

struct pipeline {
	struct plan *plan;
	struct slot *slots;
	uint64_t n_slots;
	uint8_t (*file_hashes)[16]; /* by the reader; read after it has ended */

	pthread_mutex_t lock;
	pthread_cond_t has_room, has_work, has_result;
	uint64_t read_next, encode_next, write_next;
	bool read_all, failed;
	int result;
	char message[1024];
};

static void pipeline_fail(struct pipeline *pipeline, int result)
{
	pthread_mutex_lock(&pipeline->lock);
	if (!pipeline->failed) {
		pipeline->failed = true;
		pipeline->result = result;
		snprintf(pipeline->message, sizeof(pipeline->message), "%s", message_get());
	}
	pthread_cond_broadcast(&pipeline->has_room);
	pthread_cond_broadcast(&pipeline->has_work);
	pthread_cond_broadcast(&pipeline->has_result);
	pthread_mutex_unlock(&pipeline->lock);
}

static int check_cancel(const struct pack_options *options)
{
	return options->cancel && atomic_load(options->cancel) ? message_set(-EINTR, "stopped by a signal") : 0;
}

/* --- the reader --- */

/* A free slot, or NULL when another thread failed. */
static struct slot *slot_to_read(struct pipeline *pipeline)
{
	struct slot *slot = NULL;

	pthread_mutex_lock(&pipeline->lock);
	while (!pipeline->failed && pipeline->read_next - pipeline->write_next == pipeline->n_slots)
		pthread_cond_wait(&pipeline->has_room, &pipeline->lock);
	if (!pipeline->failed)
		slot = &pipeline->slots[pipeline->read_next % pipeline->n_slots];
	pthread_mutex_unlock(&pipeline->lock);
	return slot;
}

static void slot_read(struct pipeline *pipeline)
{
	pthread_mutex_lock(&pipeline->lock);
	pipeline->read_next++;
	pthread_cond_signal(&pipeline->has_work);
	pthread_mutex_unlock(&pipeline->lock);
}

static int read_tensor(struct pipeline *pipeline, const struct plan_tensor *tensor,
		       struct hash_stream *hash, uint8_t *scratch)
{
	for (uint64_t page = 0; page < tensor->n_pages; page++) {
		bool shared = tensor->same_as != PLAN_UNIQUE;
		struct slot *slot = shared ? NULL : slot_to_read(pipeline);
		uint8_t *data = shared ? scratch : slot ? slot->decoded : NULL;
		int r = check_cancel(pipeline->plan->options);

		if (!data)
			return -ECANCELED;
		if (!r)
			r = plan_read_page(pipeline->plan, tensor, page, data);
		if (r)
			return r;
		hash_stream_update(hash, data, plan_page_bytes(tensor, page));
		if (shared)
			continue;
		slot->decoded_bytes = plan_page_bytes(tensor, page);
		slot->codec = tensor->codec;
		slot->encoded = false;
		slot_read(pipeline);
	}
	return 0;
}

static int read_file(struct pipeline *pipeline, size_t f, uint64_t *id, struct hash_stream *hash,
		     uint8_t *scratch)
{
	const struct source_file *file = &pipeline->plan->source->files[f];
	int r;

	hash_stream_reset(hash);
	hash_stream_update(hash, file->st.head, file->st.head_bytes);
	for (; *id < pipeline->plan->n_tensors && pipeline->plan->tensors[*id].file == f; ++*id) {
		r = read_tensor(pipeline, &pipeline->plan->tensors[*id], hash, scratch);
		if (r)
			return r;
	}
	hash_stream_128(hash, pipeline->file_hashes[f]);
	return source_check(file, pipeline->plan->fds[f]);
}

static void *reader_run(void *data)
{
	struct pipeline *pipeline = data;
	struct hash_stream *hash = hash_stream_new();
	uint8_t *scratch = memory_alloc(PACK_PAGE_BYTES);
	uint64_t id = 0;
	int r = hash && scratch ? 0 : message_set(-ENOMEM, "not enough memory to pack");

	for (size_t f = 0; !r && f < pipeline->plan->source->n_files; f++)
		if (pipeline->plan->source->files[f].kind == CONTAINER_FILE_SAFETENSORS)
			r = read_file(pipeline, f, &id, hash, scratch);
	if (r)
		pipeline_fail(pipeline, r);
	pthread_mutex_lock(&pipeline->lock);
	pipeline->read_all = true;
	pthread_cond_broadcast(&pipeline->has_work);
	pthread_mutex_unlock(&pipeline->lock);
	memory_free(scratch);
	hash_stream_free(hash);
	return NULL;
}

/* --- the encoders --- */

static int encode_slot(struct slot *slot, int level, struct codec_context *codec,
		       uint8_t *scratch)
{
	size_t n = slot->decoded_bytes;
	int r = CODEC_E_INCOMPRESSIBLE;

	if (slot->codec != CODEC_RAW)
		r = codec_encode(codec, slot->codec, level, slot->decoded, slot->decoded_bytes,
				 slot->stored, slot->decoded_bytes - 1, &n);
	if (r < 0)
		return message_set(r, "cannot encode a page: %s", strerror(-r));
	if (!r && (codec_decode(codec, slot->codec, slot->stored, n, scratch, slot->decoded_bytes) ||
		   memcmp(scratch, slot->decoded, slot->decoded_bytes) != 0))
		return message_set(-EILSEQ,
				   "codec %s does not give back a page that it encoded: a fault of this "
				   "build or machine; pack with --codec raw",
				   codec_name(slot->codec));
	slot->bytes = r ? slot->decoded : slot->stored;
	slot->page = (struct container_page){
		.stored_bytes = r ? slot->decoded_bytes : (uint32_t)n,
		.codec = r ? CODEC_RAW : slot->codec,
		.decoded_hash = hash_64(slot->decoded, slot->decoded_bytes),
	};
	slot->page.stored_hash = r ? slot->page.decoded_hash : hash_64(slot->stored, n);
	return 0;
}

static struct slot *slot_to_encode(struct pipeline *pipeline)
{
	struct slot *slot = NULL;

	pthread_mutex_lock(&pipeline->lock);
	while (!pipeline->failed && !pipeline->read_all &&
	       pipeline->encode_next == pipeline->read_next)
		pthread_cond_wait(&pipeline->has_work, &pipeline->lock);
	if (!pipeline->failed && pipeline->encode_next != pipeline->read_next)
		slot = &pipeline->slots[pipeline->encode_next++ % pipeline->n_slots];
	pthread_mutex_unlock(&pipeline->lock);
	return slot;
}

static void *encoder_run(void *data)
{
	struct pipeline *pipeline = data;
	struct codec_context *codec = codec_context_new_encoder();
	uint8_t *scratch = memory_alloc(PACK_PAGE_BYTES);
	struct slot *slot;

	if (!codec || !scratch)
		pipeline_fail(pipeline, message_set(-ENOMEM, "not enough memory to pack"));
	while ((slot = slot_to_encode(pipeline))) {
		int r = encode_slot(slot, plan_level(pipeline->plan), codec, scratch);

		if (r)
			pipeline_fail(pipeline, r);
		pthread_mutex_lock(&pipeline->lock);
		slot->encoded = true;
		if (slot == &pipeline->slots[pipeline->write_next % pipeline->n_slots])
			pthread_cond_signal(&pipeline->has_result);
		pthread_mutex_unlock(&pipeline->lock);
	}
	memory_free(scratch);
	codec = codec_context_free(codec);
	return NULL;
}

/* --- the writer --- */

static struct slot *slot_to_write(struct pipeline *pipeline)
{
	struct slot *slot = &pipeline->slots[pipeline->write_next % pipeline->n_slots];

	pthread_mutex_lock(&pipeline->lock);
	while (!pipeline->failed &&
	       !(pipeline->write_next < pipeline->read_next && slot->encoded))
		pthread_cond_wait(&pipeline->has_result, &pipeline->lock);
	if (pipeline->failed)
		slot = NULL;
	pthread_mutex_unlock(&pipeline->lock);
	return slot;
}

static void slot_written(struct pipeline *pipeline)
{
	pthread_mutex_lock(&pipeline->lock);
	pipeline->write_next++;
	pthread_cond_signal(&pipeline->has_room);
	pthread_mutex_unlock(&pipeline->lock);
}

static int write_tensor(struct pipeline *pipeline, struct writer *writer,
			const struct plan_tensor *tensor, uint64_t *done)
{
	const struct pack_options *options = pipeline->plan->options;
	uint32_t name_bytes = (uint32_t)strlen(tensor->name);
	struct container_tensor record = {
		.dtype = (uint16_t)tensor->tensor->dtype,
		.n_dims = (uint16_t)tensor->tensor->n_dims,
		.n_bytes = tensor->tensor->n_bytes,
		.page_bytes = tensor->page_bytes,
		.file = tensor->file,
		.file_offset = tensor->tensor->offset,
		.flags = options->is_lossy && options->is_lossy(options->lossy, tensor->name) ?
				 CONTAINER_TENSOR_QUANTIZED : 0,
	};
	int r;

	memcpy(record.dims, tensor->tensor->dims, sizeof(record.dims));
	*done += tensor->same_as == PLAN_UNIQUE ? 0 : record.n_bytes;
	if (tensor->same_as != PLAN_UNIQUE)
		return writer_tensor_shared(writer, tensor->name, name_bytes, &record,
					    tensor->same_as);
	r = writer_tensor_begin(writer, tensor->name, name_bytes, &record,
				tensor->codec == CODEC_RAW);
	for (uint64_t page = 0; !r && page < tensor->n_pages; page++) {
		struct slot *slot = slot_to_write(pipeline);

		if (!slot)
			return -ECANCELED;
		r = writer_page(writer, &slot->page, slot->bytes);
		*done += slot->decoded_bytes;
		slot_written(pipeline);
		if (!r && options->progress)
			options->progress(options->data, *done, pipeline->plan->source->n_bytes);
	}
	return r ? r : writer_tensor_end(writer);
}

static int write_companions(const struct plan *plan, struct writer *writer)
{
	for (uint64_t id = 0; id < plan->n_tensors; id++) {
		struct container_companion scale, zero_point;
		int r;

		if (!plan_companion(plan, id, DCMEM_REL_SCALE, &scale))
			continue;
		r = writer_companion(writer, &scale);
		/* A zero point means something beside a scale alone. */
		if (!r && plan_companion(plan, id, DCMEM_REL_ZERO_POINT, &zero_point))
			r = writer_companion(writer, &zero_point);
		if (r)
			return r;
	}
	return 0;
}

/* Alone: other threads of ours would be measured as well. */
static int write_hints(const struct plan *plan, struct writer *writer)
{
	struct container_hint found[CONTAINER_MAX_HINTS];
	struct hints *hints = hints_new();
	unsigned n = 0;
	int r = hints ? 0 : message_set(-ENOMEM, "not enough memory to measure codecs");

	for (uint64_t id = 0; !r && id < plan->n_tensors; id++) {
		r = check_cancel(plan->options);
		if (!r)
			r = hints_measure(hints, plan, id, found, &n);
		for (unsigned i = 0; !r && i < n; i++)
			r = writer_hint(writer, &found[i]);
	}
	hints = hints_free(hints);
	return r;
}

static int copy_file(const struct pack_options *options, const struct source_file *file,
		     struct writer *writer, uint8_t ret_hash[16])
{
	_cleanup_(cleanup_memory) uint8_t *data = memory_alloc(COPY_BYTES);
	_cleanup_(cleanup_fd) int fd = -1;
	struct hash_stream *hash = hash_stream_new();
	int r = data && hash ? source_open(file, &fd) : message_set(-ENOMEM, "not enough memory");

	for (uint64_t at = 0; !r && at < file->n_bytes; at += COPY_BYTES) {
		size_t n = min_u64(COPY_BYTES, file->n_bytes - at);

		r = check_cancel(options);
		if (r)
			break;
		r = io_read_at(fd, data, n, at);
		if (r) {
			message_set(r, "%s: cannot read at byte %llu: %s", file->path,
				    (unsigned long long)at, strerror(-r));
			break;
		}
		hash_stream_update(hash, data, n);
		r = writer_file_data(writer, data, n);
	}
	if (!r)
		r = source_check(file, fd);
	if (!r)
		hash_stream_128(hash, ret_hash);
	hash_stream_free(hash);
	return r;
}

static int write_files(struct pipeline *pipeline, struct writer *writer)
{
	const struct source *source = pipeline->plan->source;

	for (size_t f = 0; f < source->n_files; f++) {
		const struct source_file *file = &source->files[f];
		int r = writer_file_begin(writer, file->name, file->kind);

		if (!r && file->kind == CONTAINER_FILE_SAFETENSORS)
			r = writer_file_data(writer, file->st.head, file->st.head_bytes);
		else if (!r)
			r = copy_file(pipeline->plan->options, file, writer,
				      pipeline->file_hashes[f]);
		if (!r)
			r = writer_file_end(writer, file->n_bytes, pipeline->file_hashes[f]);
		if (r)
			return r;
	}
	return 0;
}

/* --- all of it --- */

static int slots_new(struct pipeline *pipeline, unsigned n_jobs)
{
	pipeline->n_slots = SLOTS_A_JOB * (uint64_t)n_jobs + SLOTS_A_JOB;
	pipeline->slots = memory_array(pipeline->n_slots, sizeof(pipeline->slots[0]));
	if (!pipeline->slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < pipeline->n_slots; i++) {
		pipeline->slots[i].decoded = memory_alloc(PACK_PAGE_BYTES);
		pipeline->slots[i].stored = memory_alloc(PACK_PAGE_BYTES);
		if (!pipeline->slots[i].decoded || !pipeline->slots[i].stored)
			return -ENOMEM;
	}
	return 0;
}

static void slots_free(struct pipeline *pipeline)
{
	for (uint64_t i = 0; pipeline->slots && i < pipeline->n_slots; i++) {
		memory_free(pipeline->slots[i].decoded);
		memory_free(pipeline->slots[i].stored);
	}
	pipeline->slots = memory_free(pipeline->slots);
}

static int run_threads(struct pipeline *pipeline, struct writer *writer, unsigned n_jobs)
{
	pthread_t reader, encoders[MAX_JOBS];
	uint64_t done = 0;
	unsigned n = 0;
	int r = pthread_create(&reader, NULL, reader_run, pipeline);

	if (r)
		return message_set(-r, "cannot start a thread: %s", strerror(r));
	while (n < n_jobs && (r = pthread_create(&encoders[n], NULL, encoder_run, pipeline)) == 0)
		n++;
	/* Fewer encoders than asked for are only slower. */
	r = n ? 0 : message_set(-r, "cannot start a thread: %s", strerror(r));
	for (uint64_t id = 0; !r && id < pipeline->plan->n_tensors; id++)
		r = write_tensor(pipeline, writer, &pipeline->plan->tensors[id], &done);
	if (r && r != -ECANCELED)
		pipeline_fail(pipeline, r);
	pthread_join(reader, NULL);
	for (unsigned i = 0; i < n; i++)
		pthread_join(encoders[i], NULL);
	return pipeline->failed ? message_set(pipeline->result, "%s", pipeline->message) : 0;
}

const char *pack_codec_name(unsigned codec)
{
	static const char *const names[PACK_N_CODECS] = {
		[PACK_CODEC_AUTO] = "auto", [PACK_CODEC_RAW] = "raw", [PACK_CODEC_ZSTD] = "zstd",
		[PACK_CODEC_PAIR] = "pair", [PACK_CODEC_PACK] = "pack",
	};

	return codec < PACK_N_CODECS ? names[codec] : NULL;
}

const char *pack_effort_name(unsigned effort)
{
	static const char *const names[PACK_N_EFFORTS] = {
		[PACK_EFFORT_NORMAL] = "normal",
		[PACK_EFFORT_FAST] = "fast",
		[PACK_EFFORT_DENSE] = "dense",
	};

	return effort < PACK_N_EFFORTS ? names[effort] : NULL;
}

static int run(struct plan *plan, struct writer *writer)
{
	unsigned n_jobs = (unsigned)min_u64(max_u64(plan->options->n_jobs, 1), MAX_JOBS);
	struct pipeline pipeline = { .plan = plan };
	char text[64];
	int r = slots_new(&pipeline, n_jobs);

	pipeline.file_hashes = memory_array(plan->source->n_files, sizeof(*pipeline.file_hashes));
	if (r || !pipeline.file_hashes)
		r = message_set(-ENOMEM, "not enough memory for %u threads: use fewer --jobs", n_jobs);
	pthread_mutex_init(&pipeline.lock, NULL);
	pthread_cond_init(&pipeline.has_room, NULL);
	pthread_cond_init(&pipeline.has_work, NULL);
	pthread_cond_init(&pipeline.has_result, NULL);
	if (!r)
		r = run_threads(&pipeline, writer, n_jobs);
	if (!r)
		r = write_companions(plan, writer);
	if (!r)
		r = write_files(&pipeline, writer);
	if (!r && plan->options->hints)
		r = write_hints(plan, writer);
	snprintf(text, sizeof(text), "codec=%s effort=%s page=%u%s%s",
		 pack_codec_name(plan->options->codec), pack_effort_name(plan->options->effort),
		 PACK_PAGE_BYTES, plan->options->is_lossy ? " quantized" : "",
		 plan->options->hints ? " hints" : "");
	if (!r)
		r = check_cancel(plan->options);
	if (!r)
		r = writer_commit(writer, text);
	pthread_cond_destroy(&pipeline.has_result);
	pthread_cond_destroy(&pipeline.has_work);
	pthread_cond_destroy(&pipeline.has_room);
	pthread_mutex_destroy(&pipeline.lock);
	memory_free(pipeline.file_hashes);
	slots_free(&pipeline);
	return r;
}

/* An output inside the source would become part of the next pack, or overwrite what is read. */
int pack_check_output(const char *source, const char *path)
{
	char *directory = memory_strdup(path), *slash, *inside = NULL, *outer = NULL;
	struct stat a, b;
	size_t n;
	int r = 0;

	if (!directory)
		return message_set(-ENOMEM, "not enough memory");
	if (stat(path, &a) == 0 && S_ISDIR(a.st_mode))
		r = message_set(-EISDIR, "%s: is a directory; give the name of a file", path);
	else if (stat(path, &a) == 0 && !S_ISREG(a.st_mode))
		r = message_set(-EINVAL, "%s: not a regular file; give another name", path);
	else if (stat(path, &a) == 0 && stat(source, &b) == 0 && a.st_dev == b.st_dev &&
		 a.st_ino == b.st_ino)
		r = message_set(-EINVAL, "%s: is the file that is packed; give another name", path);
	slash = strrchr(directory, '/');
	if (slash)
		slash[slash == directory] = '\0';
	inside = realpath(slash ? directory : ".", NULL);
	outer = realpath(source, NULL);
	if (!r && !inside)
		r = message_set(-errno, "%s: its directory: %s", path, strerror(errno));
	n = outer ? strlen(outer) : 0;
	if (!r && outer && strncmp(inside, outer, n) == 0 &&
	    (inside[n] == '\0' || inside[n] == '/' || n == 1))
		r = message_set(-EINVAL, "%s: lies inside the model that is packed; write it elsewhere",
				path);
	free(inside);
	free(outer);
	memory_free(directory);
	return r;
}

int pack(const char *source_path, const char *path, const struct pack_options *options)
{
	struct source source;
	struct plan plan;
	struct writer *writer = NULL;
	uint64_t total = 0;
	int r = pack_check_output(source_path, path);

	if (!r)
		r = source_init(&source, source_path);
	if (r)
		return r;
	r = plan_init(&plan, &source, options);
	if (r == -EINTR)
		(void)check_cancel(options);
	if (!r) {
		for (uint64_t id = 0; id < plan.n_tensors; id++)
			total += align_up(plan.tensors[id].tensor->n_bytes, CONTAINER_ALIGN);
		r = writer_new(&writer, path, total);
		if (!r)
			r = run(&plan, writer);
		writer = writer_free(writer);
		plan_deinit(&plan);
	}
	source_deinit(&source);
	return r;
}
