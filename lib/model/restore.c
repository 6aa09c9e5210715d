/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decodes batches of pages on all cores into one buffer, which then goes to the sink in order and
 * into the hash of the file. Threads wait between batches; a batch's items are shared out by a
 * counter. The index was checked when the container was opened; that tensors follow each other
 * without gaps in their file is checked here.
 */
#include "model/restore.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"

#define MAX_ITEMS  4096
#define MAX_JOBS   256
#define JOB_BYTES  (4U << 20) /* of a batch, for each thread: untuned */
#define MAX_STORED (CONTAINER_MAX_PAGE_BYTES + (64U << 10)) /* a codec may grow a page a little */

struct item {
	const struct container_page *page;
	uint32_t segment, n_bytes; /* decoded */
	uint8_t *dst;
};

struct worker {
	struct restore *restore;
	struct codec_context *codec;
	uint8_t *stored;
	pthread_t thread;
};

struct restore {
	const struct container *container;
	struct worker *workers; /* 0 is the calling thread */
	unsigned n_workers, n_threads;
	uint8_t *buffer;
	size_t buffer_bytes, used;
	struct hash_stream *hash;
	uint64_t next_tensor;

	struct item items[MAX_ITEMS];
	unsigned n_items;
	atomic_uint next_item;

	pthread_mutex_t lock;
	pthread_cond_t go, done;
	uint64_t batch; /* number of the one being decoded */
	unsigned n_busy;
	bool stop;
	int result;
	char message[1024];
};

unsigned restore_cpu_count(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

static int decode_item(struct worker *worker, const struct item *item)
{
	int r;

	if (item->page->stored_bytes > MAX_STORED)
		return message_set(INDEX_E_CORRUPT, "a page claims %u stored bytes",
				   item->page->stored_bytes);
	r = container_read_segment(worker->restore->container, item->segment, item->page->offset,
				   worker->stored, item->page->stored_bytes);
	return r ? r : container_decode_page(worker->codec, item->page, worker->stored, item->dst,
					     item->n_bytes);
}

static void decode_items(struct worker *worker)
{
	struct restore *restore = worker->restore;

	for (;;) {
		unsigned i = atomic_fetch_add(&restore->next_item, 1);
		int r = i < restore->n_items ? decode_item(worker, &restore->items[i]) : 0;

		if (i >= restore->n_items)
			return;
		if (!r)
			continue;
		pthread_mutex_lock(&restore->lock);
		if (!restore->result) {
			restore->result = r;
			snprintf(restore->message, sizeof(restore->message), "%s", message_get());
		}
		pthread_mutex_unlock(&restore->lock);
	}
}

static void *worker_run(void *data)
{
	struct worker *worker = data;
	struct restore *restore = worker->restore;
	uint64_t seen = 0;

	pthread_mutex_lock(&restore->lock);
	for (;;) {
		while (!restore->stop && restore->batch == seen)
			pthread_cond_wait(&restore->go, &restore->lock);
		if (restore->stop)
			break;
		seen = restore->batch;
		pthread_mutex_unlock(&restore->lock);
		decode_items(worker);
		pthread_mutex_lock(&restore->lock);
		if (--restore->n_busy == 0)
			pthread_cond_signal(&restore->done);
	}
	pthread_mutex_unlock(&restore->lock);
	return NULL;
}

static int run_batch(struct restore *restore)
{
	pthread_mutex_lock(&restore->lock);
	atomic_store(&restore->next_item, 0);
	restore->n_busy = restore->n_threads;
	restore->batch++;
	pthread_cond_broadcast(&restore->go);
	pthread_mutex_unlock(&restore->lock);
	decode_items(&restore->workers[0]);
	pthread_mutex_lock(&restore->lock);
	while (restore->n_busy)
		pthread_cond_wait(&restore->done, &restore->lock);
	pthread_mutex_unlock(&restore->lock);
	restore->n_items = 0;
	return restore->result ? message_set(restore->result, "%s", restore->message) : 0;
}

int restore_new(struct restore **ret_restore, const struct container *container, unsigned n_jobs)
{
	struct restore *restore = memory_zalloc(sizeof(*restore));
	unsigned n = (unsigned)min_u64(max_u64(n_jobs, 1), MAX_JOBS);

	if (!restore)
		return message_set(-ENOMEM, "not enough memory");
	pthread_mutex_init(&restore->lock, NULL);
	pthread_cond_init(&restore->go, NULL);
	pthread_cond_init(&restore->done, NULL);
	restore->container = container;
	restore->buffer_bytes = (size_t)JOB_BYTES * n;
	restore->buffer = memory_alloc(restore->buffer_bytes);
	restore->hash = hash_stream_new();
	restore->workers = memory_array(n, sizeof(restore->workers[0]));
	if (!restore->buffer || !restore->hash || !restore->workers)
		goto no_memory;
	for (; restore->n_workers < n; restore->n_workers++) {
		struct worker *worker = &restore->workers[restore->n_workers];

		worker->restore = restore;
		worker->codec = codec_context_new();
		worker->stored = memory_alloc(MAX_STORED);
		if (!worker->codec || !worker->stored) {
			restore->n_workers++;
			goto no_memory;
		}
	}
	/* A thread that does not start makes it slower, nothing else. */
	while (restore->n_threads + 1 < n &&
	       pthread_create(&restore->workers[restore->n_threads + 1].thread, NULL, worker_run,
			      &restore->workers[restore->n_threads + 1]) == 0)
		restore->n_threads++;
	*ret_restore = restore;
	return 0;
no_memory:
	restore_free(restore);
	return message_set(-ENOMEM, "not enough memory for %u threads", n);
}

struct restore *restore_free(struct restore *restore)
{
	if (!restore)
		return NULL;
	pthread_mutex_lock(&restore->lock);
	restore->stop = true;
	pthread_cond_broadcast(&restore->go);
	pthread_mutex_unlock(&restore->lock);
	for (unsigned i = 0; i < restore->n_threads; i++)
		pthread_join(restore->workers[i + 1].thread, NULL);
	for (unsigned i = 0; i < restore->n_workers; i++) {
		restore->workers[i].codec = codec_context_free(restore->workers[i].codec);
		memory_free(restore->workers[i].stored);
	}
	pthread_cond_destroy(&restore->done);
	pthread_cond_destroy(&restore->go);
	pthread_mutex_destroy(&restore->lock);
	memory_free(restore->workers);
	memory_free(restore->buffer);
	restore->hash = hash_stream_free(restore->hash);
	return memory_free(restore);
}

/* Decodes what is queued and hands it on. */
static int flush_batch(struct restore *restore, const struct restore_sink *sink, uint64_t *offset)
{
	size_t n = restore->used;
	int r = run_batch(restore);

	restore->used = 0;
	if (r || !n)
		return r;
	hash_stream_update(restore->hash, restore->buffer, n);
	r = sink->write(sink->data, restore->buffer, n, *offset);
	*offset += n;
	return r;
}

static int restore_form(struct restore *restore, const struct container_tensor *tensor,
			const struct container_form *form, const struct restore_sink *sink,
			uint64_t *offset)
{
	const struct container_page *pages;
	int r = index_pages(&restore->container->index, form->page_record, form->n_pages, &pages);

	for (uint64_t i = 0; !r && i < form->n_pages; i++) {
		uint32_t n = (uint32_t)index_page_bytes(tensor, form->first_page + i);

		if (restore->n_items == MAX_ITEMS || n > restore->buffer_bytes - restore->used)
			r = flush_batch(restore, sink, offset);
		if (r)
			break;
		restore->items[restore->n_items++] = (struct item){
			.page = &pages[i],
			.segment = form->segment,
			.n_bytes = n,
			.dst = restore->buffer + restore->used,
		};
		restore->used += n;
	}
	return r;
}

static int restore_tensors(struct restore *restore, uint64_t file,
			   const struct restore_sink *sink, uint64_t *offset)
{
	const struct index *index = &restore->container->index;
	uint64_t at = 0; /* in the file's data section */
	int r = 0;

	for (; restore->next_tensor < index->n_tensors; restore->next_tensor++) {
		const struct container_tensor *tensor;
		const struct container_form *form;

		r = index_tensor(index, restore->next_tensor, &tensor);
		if (r)
			return r;
		if (tensor->file != file)
			break;
		if (tensor->file_offset != at || !range_add(at, tensor->n_bytes, &at))
			return message_set(INDEX_E_CORRUPT, "tensor %llu is not where its file has it",
					   (unsigned long long)restore->next_tensor);
		if (tensor->n_bytes == 0)
			continue;
		r = index_form(index, tensor->first_form, &form);
		if (!r)
			r = restore_form(restore, tensor, form, sink, offset);
		if (r)
			return r;
	}
	return flush_batch(restore, sink, offset);
}

/* Blobs are bounded by the file; the reading half reads them whole, to check their hash. */
static int restore_blob(struct restore *restore, const struct container_file *file,
			const struct restore_sink *sink)
{
	_cleanup_(cleanup_memory) void *data = NULL;
	int r = container_read_blob(restore->container, file, &data);

	if (r || file->blob_bytes == 0)
		return r;
	hash_stream_update(restore->hash, data, file->blob_bytes);
	return sink->write(sink->data, data, file->blob_bytes, 0);
}

int restore_file(struct restore *restore, uint64_t i, const struct restore_sink *sink)
{
	const struct container_file *file;
	const char *name;
	uint8_t hash[16];
	uint64_t offset;
	int r = index_file(&restore->container->index, i, &file);

	if (!r)
		r = index_file_name(&restore->container->index, file, &name);
	if (r)
		return r;
	hash_stream_reset(restore->hash);
	offset = file->blob_bytes;
	r = restore_blob(restore, file, sink);
	if (!r)
		r = restore_tensors(restore, i, sink, &offset);
	if (r)
		return message_prefix(r, "%s", name);
	hash_stream_128(restore->hash, hash);
	if (offset != file->file_bytes || memcmp(hash, file->file_hash, 16) != 0)
		return message_set(INDEX_E_CORRUPT,
				   "%s: is not the file that was packed (its hash differs)", name);
	return 0;
}

static int discard(void *data, const void *bytes, size_t n_bytes, uint64_t offset)
{
	return 0;
}

int restore_check_rest(struct restore *restore)
{
	const struct index *index = &restore->container->index;
	const struct restore_sink sink = { .write = discard };
	uint64_t offset = 0;

	if (restore->next_tensor != index->n_tensors)
		return message_set(INDEX_E_CORRUPT, "tensor %llu belongs to no file in order",
				   (unsigned long long)restore->next_tensor);
	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const struct container_form *form;
		int r = index_tensor(index, id, &tensor);

		for (uint32_t i = 1; !r && i < tensor->n_forms; i++) {
			r = index_form(index, tensor->first_form + i, &form);
			if (!r)
				r = restore_form(restore, tensor, form, &sink, &offset);
		}
		if (r)
			return r;
	}
	return flush_batch(restore, &sink, &offset);
}
