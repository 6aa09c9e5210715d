/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a container. Owns what it builds until it succeeds; refuses files that are damaged,
 * truncated or do not fit the budget. Loader thread; pages are verified on the decode threads, in
 * batches. Memory is charged before it exists, and nothing is published that was not verified.
 */
#include "model-load.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "hugepage.h"
#include "model/container.h"
#include "placement.h"

#define READ_BYTES (8ULL << 20) /* large enough for readahead, small enough to cancel; untuned */
#define VERIFY_PAGES 64		/* pages a verifying job: 16 MiB decoded; untuned */
#define MINIMAL_CHUNK HUGEPAGE_BYTES
#define ROOM_TRIES 250 /* of 10 ms: a second until the store looks, and time for clients to unmap */

struct verify_batch {
	pthread_mutex_t mutex;
	pthread_cond_t finished;
	uint64_t n_left;
	int result;
	char message[512];
};

struct verify_job {
	struct pool_job job;
	struct verify_batch *batch;
	const struct index *index;
	uint64_t tensor, first_page, n_pages; /* first_page: of the tensor, for messages */
	const struct container_page *pages;
	const struct held *held;
	const struct region *segment;
};

void loaded_model_close(struct loaded_model *loaded)
{
	for (uint32_t i = 0; i < loaded->n_segments; i++)
		region_close(&loaded->segments[i].region);
	loaded->segments = memory_free(loaded->segments);
	loaded->n_segments = 0;
	loaded->held = memory_free(loaded->held);
	layout_deinit(&loaded->layout);
	if (loaded->file_is_open)
		container_close(&loaded->file);
	loaded->file_is_open = false;
	for (uint32_t i = 0; i < loaded->n_files; i++)
		region_close(&loaded->files[i]);
	loaded->files = memory_free(loaded->files);
	loaded->n_files = 0;
	region_close(&loaded->index);
	region_close(&loaded->placement);
}

static bool is_cancelled(const struct model_load *load)
{
	return __atomic_load_n(load->cancelled, __ATOMIC_RELAXED);
}

static int verify_page(const struct verify_job *job, uint64_t i)
{
	const struct container_page *page = &job->pages[i];
	const struct container_tensor *tensor;
	const char *what = NULL, *name = "?";
	uint64_t hash, at;

	if (!index_page_place(page, job->held->pages_from, job->held->stored_bytes, &at)) {
		what = "lies outside its form";
	} else {
		hash = hash_64((const uint8_t *)job->segment->data + job->held->offset + at,
			       page->stored_bytes);
		if (hash != page->stored_hash ||
		    (page->codec == CODEC_RAW && hash != page->decoded_hash))
			what = "is damaged";
	}
	if (!what)
		return 0;
	if (!index_tensor(job->index, job->tensor, &tensor))
		(void)index_tensor_name(job->index, tensor, &name);
	return message_set(STORE_E_CORRUPT, "tensor '%s' page %llu %s (at %llu of its segment)",
			   name, (unsigned long long)(job->first_page + i), what,
			   (unsigned long long)page->offset);
}

static bool verify_run(struct pool_job *base, struct codec_context *codec)
{
	struct verify_job *job = (struct verify_job *)base;
	struct verify_batch *batch = job->batch;
	int r = 0;

	for (uint64_t i = 0; i < job->n_pages && !r; i++)
		r = verify_page(job, i);
	memory_free(job);
	pthread_mutex_lock(&batch->mutex);
	if (r && !batch->result) {
		batch->result = r;
		(void)snprintf(batch->message, sizeof(batch->message), "%s", message_get());
	}
	if (--batch->n_left == 0)
		pthread_cond_signal(&batch->finished);
	pthread_mutex_unlock(&batch->mutex);
	return false;
}

static int submit_tensor(struct model_load *load, struct verify_batch *batch, uint64_t id)
{
	const struct index *index = &load->loaded.catalog;
	const struct held *held = &load->loaded.held[id];
	const struct container_tensor *tensor;
	struct index_shape shape;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_shape(tensor, &shape);
	if (r)
		return r;
	load->loaded.decoded_bytes += tensor->n_bytes;
	load->loaded.coded_bytes += held->raw ? 0 : tensor->n_bytes;
	if (load->loaded.layout.owners[id] != id) /* verified with the one whose bytes it has */
		return 0;
	for (uint64_t first = 0; first < shape.n_pages; first += VERIFY_PAGES) {
		struct verify_job *job = memory_zalloc(sizeof(*job));

		if (!job)
			return -ENOMEM;
		*job = (struct verify_job){
			.job.run = verify_run,
			.batch = batch,
			.index = index,
			.tensor = id,
			.first_page = first,
			.n_pages = min_u64(VERIFY_PAGES, shape.n_pages - first),
			.pages = held->pages + first,
			.held = held,
			.segment = &load->loaded.segments[held->segment].region,
		};
		pthread_mutex_lock(&batch->mutex);
		batch->n_left++;
		pthread_mutex_unlock(&batch->mutex);
		pool_submit(load->verifiers, &job->job, POOL_AHEAD);
	}
	return 0;
}

static int verify_all(struct model_load *load)
{
	struct verify_batch batch = {.n_left = 1}; /* ours, until all are submitted */
	int r = 0;

	(void)pthread_mutex_init(&batch.mutex, NULL);
	(void)pthread_cond_init(&batch.finished, NULL);
	for (uint64_t id = 0; id < load->loaded.catalog.n_tensors && !r; id++)
		r = submit_tensor(load, &batch, id);
	pthread_mutex_lock(&batch.mutex);
	batch.n_left--;
	while (batch.n_left)
		pthread_cond_wait(&batch.finished, &batch.mutex);
	pthread_mutex_unlock(&batch.mutex);
	if (!r && batch.result)
		r = message_set(batch.result, "%s", batch.message);
	(void)pthread_cond_destroy(&batch.finished);
	(void)pthread_mutex_destroy(&batch.mutex);
	return r;
}

static int read_form(struct model_load *load, const struct container *container, uint64_t id,
		     struct region *region)
{
	const struct held *held = &load->loaded.held[id];
	const struct container_tensor *tensor;
	const struct container_form *form = NULL;
	int r = index_tensor(&load->loaded.catalog, id, &tensor);

	if (!r)
		r = placement_form(&load->loaded.catalog, tensor, &form);
	for (uint64_t at = 0; !r && at < held->stored_bytes; at += READ_BYTES) {
		if (is_cancelled(load))
			return message_set(-ECANCELED, "loading was given up");
		r = container_read_segment(container, form->segment, form->offset + at,
					   (uint8_t *)region->data + held->offset + at,
					   min_u64(READ_BYTES, held->stored_bytes - at));
	}
	return r;
}

static int load_segment(struct model_load *load, const struct container *container, uint32_t id)
{
	const struct layout *layout = &load->loaded.layout;
	const struct layout_segment *segment = &layout->segments[id];
	struct region *region = &load->loaded.segments[id].region;
	struct charge charge = {0};
	int r;

	r = budget_charge(load->budget, BUDGET_INFLIGHT, segment->n_bytes, &charge);
	if (!r)
		r = region_create("dcmem-segment", segment->n_bytes, load->config, region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	region->charge = charge;
	if (load->config->huge_pages && region->n_bytes >= HUGEPAGE_BYTES &&
	    !hugepage_populate(region->data, region->n_bytes))
		load->loaded.n_small_pages++;
	for (uint64_t i = 0; i < segment->count && !r; i++)
		r = read_form(load, container, layout->order[segment->first + i], region);
	return r;
}

/* Idle windows of other models give way, but their clients have to unmap them first. */
static bool wait_for_room(struct model_load *load, uint64_t need)
{
	const struct timespec pause = {.tv_nsec = 10000000};

	__atomic_store_n(&load->wanted, need, __ATOMIC_RELEASE);
	for (unsigned try = 0; try < ROOM_TRIES; try++) {
		if (budget_has_room(load->budget, need) || is_cancelled(load))
			break;
		(void)nanosleep(&pause, NULL);
	}
	__atomic_store_n(&load->wanted, 0, __ATOMIC_RELEASE);
	return budget_has_room(load->budget, need);
}

/* All or nothing, before anything is touched; others may still be faster in between. */
static int check_budget(struct model_load *load, const struct container *container)
{
	uint64_t need = container->header.index_bytes +
			placement_bytes(container->index.n_tensors) + MINIMAL_CHUNK;

	for (uint32_t i = 0; i < load->loaded.layout.n_segments; i++)
		if (!range_add(need, load->loaded.layout.segments[i].n_bytes, &need))
			return message_set(STORE_E_CORRUPT, "segments of more than 2^64 bytes");
	for (uint64_t i = 0; i < container->index.n_files; i++) {
		const struct container_file *file;
		int r = index_file(&container->index, i, &file);

		if (r)
			return r;
		if (!range_add(need, max_u64(file->blob_bytes, 1), &need))
			return message_set(STORE_E_CORRUPT, "files of more than 2^64 bytes");
	}
	if (!wait_for_room(load, need)) {
		struct budget now;

		budget_get(load->budget, &now);
		return message_set(STORE_E_BUDGET,
				   "the model needs %llu bytes, and %llu of the budget of %llu are "
				   "in use: unload a model or raise the budget",
				   (unsigned long long)need, (unsigned long long)now.total,
				   (unsigned long long)now.limit);
	}
	return 0;
}

/* A file may be empty, a mapping may not: then it has one byte, which nobody is told of. */
static int load_file(struct model_load *load, const struct container *container, uint32_t id)
{
	struct region *region = &load->loaded.files[id];
	_cleanup_(cleanup_memory) void *data = NULL;
	const struct container_file *file;
	struct charge charge = {0};
	int r = index_file(&container->index, id, &file);

	if (!r)
		r = budget_charge(load->budget, BUDGET_INFLIGHT, max_u64(file->blob_bytes, 1),
				  &charge);
	if (!r)
		r = container_read_blob(container, file, &data);
	if (!r)
		r = region_create("dcmem-file", max_u64(file->blob_bytes, 1), NULL, region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	region->charge = charge;
	memcpy(region->data, data, file->blob_bytes);
	return region_seal_immutable(region);
}

static int load_tables(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	uint64_t n_bytes = container->header.index_bytes;
	struct charge charge = {0};
	int r = budget_charge(load->budget, BUDGET_INFLIGHT, n_bytes, &charge);

	if (!r)
		r = region_create("dcmem-index", n_bytes, NULL, &loaded->index);
	if (r) {
		charge_release(&charge);
		return r;
	}
	loaded->index.charge = charge;
	memcpy(loaded->index.data, container->index_bytes, n_bytes);
	r = region_seal_immutable(&loaded->index);
	if (!r)
		r = index_init(&loaded->catalog, loaded->index.data, n_bytes);
	charge = (struct charge){0};
	if (!r)
		r = budget_charge(load->budget, BUDGET_INFLIGHT,
				  placement_bytes(loaded->catalog.n_tensors), &charge);
	if (!r)
		r = placement_create(loaded->catalog.n_tensors, &loaded->placement);
	if (r)
		charge_release(&charge);
	else
		loaded->placement.charge = charge;
	return r;
}

/* Where everything will lie, before any of it is touched. */
static int lay_out(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	uint64_t n_tensors = container->index.n_tensors;
	int r;

	loaded->held = memory_array(n_tensors ? n_tensors : 1, sizeof(*loaded->held));
	if (!loaded->held)
		return -ENOMEM;
	r = layout_init(&loaded->layout, &container->index, loaded->held);
	return r ? r : check_budget(load, container);
}

static int load_files(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	uint32_t n_files = (uint32_t)container->index.n_files;
	int r = 0;

	loaded->files = memory_array(n_files ? n_files : 1, sizeof(*loaded->files));
	if (!loaded->files)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_files; i++)
		loaded->files[i] = REGION_NONE;
	loaded->n_files = n_files;
	for (uint32_t i = 0; i < n_files && !r; i++)
		r = load_file(load, container, i);
	return r;
}

/* The pages of the container's own index go with it; those of the catalog are the same and stay. */
static int adopt_pages(struct loaded_model *loaded, uint64_t id)
{
	struct held *held = &loaded->held[id];
	const struct container_tensor *tensor;
	const struct container_form *form;
	int r = held->pages ? index_tensor(&loaded->catalog, id, &tensor) : 0;

	if (r || !held->pages)
		return r;
	r = placement_form(&loaded->catalog, tensor, &form);
	return r ? r : index_pages(&loaded->catalog, form->page_record, form->n_pages, &held->pages);
}

static int load_regions(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	int r = lay_out(load, container);

	memcpy(loaded->fingerprint, container->header.fingerprint, sizeof(loaded->fingerprint));
	if (!r)
		r = load_tables(load, container);
	if (!r)
		r = load_files(load, container);
	for (uint64_t id = 0; !r && id < loaded->catalog.n_tensors; id++)
		r = adopt_pages(loaded, id);
	if (r)
		return r;
	loaded->segments = memory_array(SHM_MAX_SEGMENTS, sizeof(*loaded->segments));
	if (!loaded->segments)
		return -ENOMEM;
	for (uint32_t i = 0; i < loaded->layout.n_segments && !r; i++) {
		loaded->segments[i] = (struct segment){.region = REGION_NONE, .generation = 1};
		loaded->n_segments = i + 1;
		r = load_segment(load, container, i);
	}
	if (!r)
		r = verify_all(load);
	for (uint32_t i = 0; i < loaded->n_segments && !r; i++) {
		r = region_seal_immutable(&loaded->segments[i].region);
		if (!r)
			placement_set_segment(&loaded->placement, i, 1);
	}
	for (uint64_t id = 0; !r && id < loaded->catalog.n_tensors; id++)
		placement_write(&loaded->placement, id, &loaded->held[id]);
	return r;
}

static bool load_run(struct pool_job *base, struct codec_context *codec)
{
	struct model_load *load = (struct model_load *)base;
	struct container container;
	int r;

	message_clear();
	if (is_cancelled(load)) {
		r = message_set(-ECANCELED, "loading was given up");
	} else {
		r = container_open(&container, load->path);
		if (!r) {
			r = load_regions(load, &container);
			if (r) {
				message_prefix(r, "%s", load->path);
				container_close(&container);
			} else {
				container_share_index(&container, &load->loaded.catalog);
				load->loaded.file = container;
				load->loaded.file_is_open = true;
			}
		}
	}
	load->result = r;
	if (r) {
		(void)snprintf(load->message, sizeof(load->message), "%s", message_get());
		loaded_model_close(&load->loaded);
	}
	return true;
}

void model_load_init(struct model_load *load)
{
	*load = (struct model_load){.job.run = load_run};
	load->loaded.index = REGION_NONE;
	load->loaded.placement = REGION_NONE;
}
