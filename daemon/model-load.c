/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a container. Owns what it builds until it succeeds; refuses files that are damaged,
 * truncated, changed meanwhile, or do not fit the budget. Loader thread; load-fill.c has others help
 * it. Memory is charged before it exists, and nothing is published that was not verified.
 */
#include "model-load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "hugepage.h"
#include "load-fill.h"
#include "model/container.h"
#include "page-cache.h"
#include "placement.h"

#define MINIMAL_CHUNK HUGEPAGE_BYTES
#define ROOM_TRIES 250 /* of 10 ms: a second until the store looks, and time for clients to unmap */

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

bool model_load_is_over(const struct model_load *load)
{
	return __atomic_load_n(load->cancelled, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&load->given_up, __ATOMIC_RELAXED);
}

static int count_bytes(struct loaded_model *loaded)
{
	for (uint64_t id = 0; id < loaded->catalog.n_tensors; id++) {
		const struct container_tensor *tensor;
		int r = index_tensor(&loaded->catalog, id, &tensor);

		if (r)
			return r;
		loaded->decoded_bytes += tensor->n_bytes;
		loaded->coded_bytes += loaded->held[id].raw ? 0 : tensor->n_bytes;
	}
	return 0;
}

/* Idle windows of other models give way, but their clients have to unmap them first. */
static bool wait_for_room(struct model_load *load, uint64_t need)
{
	const struct timespec pause = {.tv_nsec = 10000000};

	__atomic_store_n(&load->wanted, need, __ATOMIC_RELEASE);
	for (unsigned try = 0; try < ROOM_TRIES; try++) {
		if (budget_has_room(load->budget, need) || model_load_is_over(load))
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
	r = count_bytes(loaded);
	if (!r)
		r = load_fill(load, container);
	for (uint32_t i = 0; i < loaded->n_segments && !r; i++)
		placement_set_segment(&loaded->placement, i, 1);
	for (uint64_t id = 0; !r && id < loaded->catalog.n_tensors; id++)
		placement_write(&loaded->placement, id, &loaded->held[id]);
	return r;
}

/* What is wrong with bytes that somebody is writing to meanwhile is that. */
static int explain(const struct model_load *load, int result, int fd, const struct stat *before)
{
	struct stat now;

	message_prefix(result, "%s", load->path);
	if (result != STORE_E_CORRUPT || fstat(fd, &now) < 0 ||
	    (now.st_size == before->st_size && now.st_mtim.tv_sec == before->st_mtim.tv_sec &&
	     now.st_mtim.tv_nsec == before->st_mtim.tv_nsec))
		return result;
	return message_prefix(result, "the file was changed while it was loaded");
}

static int load_open(struct model_load *load, int fd, const struct stat *before)
{
	struct container container;
	int r;

	r = container_open_fd(&container, fd, load->path);
	if (r) {
		(void)close(fd);
		return r;
	}
	r = load_regions(load, &container);
	if (r) {
		r = explain(load, r, fd, before);
		container_close(&container);
		return r;
	}
	container_share_index(&container, &load->loaded.catalog);
	load->loaded.file = container;
	load->loaded.file_is_open = true;
	return 0;
}

static int load_path(struct model_load *load)
{
	/* O_NONBLOCK: opening a FIFO must not wait; it is refused later. */
	int fd = open(load->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), r;
	enum page_cache cached;
	struct stat before;

	if (fd < 0 || fstat(fd, &before) < 0) {
		r = message_set(-errno, "%s: %s", load->path, strerror(errno));
		close_fd(fd);
		return r;
	}
	cached = page_cache_has(fd, 0, (uint64_t)before.st_size);
	/* Else the readahead of header and index brings what is read past the page cache anyhow. */
	if (cached != PAGE_CACHE_ALL)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	r = load_open(load, fd, &before);
	if (!r && cached == PAGE_CACHE_NONE)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	if (!r)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_NORMAL);
	return r;
}

static bool load_run(struct pool_job *base, struct codec_context *codec)
{
	struct model_load *load = (struct model_load *)base;
	int r;

	message_clear();
	r = model_load_is_over(load) ? message_set(-ECANCELED, "loading was given up") :
				       load_path(load);
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
