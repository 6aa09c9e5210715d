/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling the segments of a model. Owns the reads; refuses files that end early or cannot be read.
 * The loader's thread walks the segments in order: it has huge pages made, which costs a tenth of small
 * ones, then has pieces read into them. What is not in the page cache is read past it, by
 * io_uring; what is, or where that cannot be done, is read by the decode threads. A segment is sealed
 * by whoever completes it. Whatever a read past the cache did not bring is read again the plain way,
 * whose error counts. Invariant: no memory is given up while a read or a job may touch it.
 */
#include "load-fill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "hugepage.h"
#include "page-cache.h"

#define PIECE_BYTES HUGEPAGE_BYTES
#define DEPTH 16		      /* reads by io_uring at a time */
#define OPEN_MOST 16		      /* segments, each of which may have a huge page too much */
#define OPEN_AHEAD 2		      /* of these, which get huge pages but are not read yet; untuned */
#define STRETCH_BYTES (8UL << 20)     /* that get huge pages by one call; untuned */
#define TAIL_LEAST (512UL << 10)      /* from which on a huge page is filled, then cut; untuned */

bool fill_is_over(struct fill *fill)
{
	return __atomic_load_n(&fill->result, __ATOMIC_RELAXED) || model_load_is_over(fill->load);
}

void fill_fail(struct fill *fill, int result)
{
	if (fill->result)
		return;
	(void)snprintf(fill->message, sizeof(fill->message), "%s", message_get());
	__atomic_store_n(&fill->result, result, __ATOMIC_RELAXED);
}

void fill_job_done(struct fill *fill)
{
	pthread_mutex_lock(&fill->mutex);
	fill->n_jobs--;
	pthread_cond_broadcast(&fill->changed);
	pthread_mutex_unlock(&fill->mutex);
}

static int seal(struct fill_segment *segment)
{
	int r = 0;

	if (segment->region->n_bytes > segment->layout->n_bytes)
		r = region_shrink(segment->region, segment->layout->n_bytes);
	return r ? r : region_seal_immutable(segment->region);
}

void fill_settle(struct fill_segment *segment)
{
	struct fill *fill = segment->fill;
	bool mine;
	int r;

	pthread_mutex_lock(&fill->mutex);
	mine = !segment->finishing && !fill->result && verify_is_complete(segment);
	segment->finishing = segment->finishing || mine;
	pthread_mutex_unlock(&fill->mutex);
	if (!mine)
		return;
	r = seal(segment);
	pthread_mutex_lock(&fill->mutex);
	if (r)
		fill_fail(fill, r);
	fill->n_open--;
	pthread_cond_broadcast(&fill->changed);
	pthread_mutex_unlock(&fill->mutex);
}

static void *place_of(const struct fill_piece *piece)
{
	return (uint8_t *)piece->segment->region->data + piece->offset;
}

static int read_plainly(struct fill_piece *piece)
{
	struct fill *fill = piece->segment->fill;
	int r = io_read_at(fill->fd, place_of(piece), piece->n_bytes, piece->file_offset);

	if (r == -ENODATA)
		return message_set(STORE_E_CORRUPT,
				   "the file ends in its bytes %llu to %llu: it was truncated",
				   (unsigned long long)piece->file_offset,
				   (unsigned long long)(piece->file_offset + piece->n_bytes));
	if (r)
		return message_set(r, "cannot read bytes %llu to %llu: %s",
				   (unsigned long long)piece->file_offset,
				   (unsigned long long)(piece->file_offset + piece->n_bytes),
				   strerror(-r));
	if (piece->drop)
		(void)posix_fadvise(fill->fd, (off_t)piece->file_offset, piece->n_bytes,
				    POSIX_FADV_DONTNEED);
	return 0;
}

static void complete(struct fill_piece *piece, int result)
{
	struct fill_segment *segment = piece->segment;
	struct fill *fill = segment->fill;
	struct load_reads *reads = &fill->load->reads;
	int r = result;

	pthread_mutex_lock(&fill->mutex);
	if (r) {
		fill_fail(fill, r);
	} else {
		piece->is_read = true;
		if (piece->direct)
			reads->direct_bytes += piece->n_bytes;
		else if (piece->drop)
			reads->dropped_bytes += piece->n_bytes;
		else
			reads->cached_bytes += piece->n_bytes;
		r = verify_advance(segment);
		if (r)
			fill_fail(fill, r);
	}
	pthread_mutex_unlock(&fill->mutex);
	fill_settle(segment);
}

/* What the direct read did not bring comes the plain way. result: bytes, or negative errno */
static int finish_direct(struct fill_piece *piece, int result)
{
	if (result == (int)piece->n_bytes)
		return 0;
	if (result == -EINVAL || result == -EOPNOTSUPP)
		__atomic_store_n(&piece->segment->fill->direct_refused, true, __ATOMIC_RELAXED);
	piece->direct = false;
	return read_plainly(piece);
}

static bool read_job_run(struct pool_job *base, struct codec_context *codec)
{
	struct fill_piece *piece = (struct fill_piece *)base;
	struct fill *fill = piece->segment->fill;
	int r = 0;

	if (!fill_is_over(fill)) {
		if (piece->direct)
			r = io_read_at(fill->direct_fd, place_of(piece), piece->n_bytes,
				       piece->file_offset);
		r = piece->direct ? finish_direct(piece, r ? r : (int)piece->n_bytes) :
				    read_plainly(piece);
		complete(piece, r);
	}
	pthread_mutex_lock(&fill->mutex);
	fill->n_reading--;
	pthread_mutex_unlock(&fill->mutex);
	fill_job_done(fill);
	return false;
}

/* Waits until something is done, if anything is under way. */
static void wait_for_change(struct fill *fill)
{
	int result, r;
	void *tag;

	if (fill->ring && read_ring_n_started(fill->ring)) {
		r = read_ring_wait(fill->ring, &tag, &result);
		if (!r) {
			struct fill_piece *piece = tag;

			if (!fill_is_over(fill))
				complete(piece, finish_direct(piece, result));
			return;
		}
		(void)message_set(r, "io_uring broke: %s", strerror(-r));
		fill->ring = read_ring_free(fill->ring);
		pthread_mutex_lock(&fill->mutex);
		fill_fail(fill, r);
		pthread_mutex_unlock(&fill->mutex);
		return;
	}
	pthread_mutex_lock(&fill->mutex);
	if (fill->n_jobs)
		pthread_cond_wait(&fill->changed, &fill->mutex);
	pthread_mutex_unlock(&fill->mutex);
}

static uint64_t value_of(struct fill *fill, const uint64_t *counter)
{
	uint64_t value;

	pthread_mutex_lock(&fill->mutex);
	value = *counter;
	pthread_mutex_unlock(&fill->mutex);
	return value;
}

static bool prepare_run(struct pool_job *base, struct codec_context *codec)
{
	struct fill_stretch *stretch = (struct fill_stretch *)base;
	struct fill *fill = stretch->segment->fill;
	bool small = !fill_is_over(fill) &&
		     !hugepage_collapse((uint8_t *)stretch->segment->region->data + stretch->offset,
					stretch->n_bytes);

	pthread_mutex_lock(&fill->mutex);
	stretch->is_ready = true;
	fill->load->loaded.n_small_pages += small;
	pthread_mutex_unlock(&fill->mutex);
	fill_job_done(fill);
	return false;
}

/* Several threads do it, because zeroing is most of it, and for a host to bring memory takes longer. */
static int prepare(struct fill *fill, struct fill_segment *segment)
{
	uint64_t whole = segment->region->n_bytes & ~(HUGEPAGE_BYTES - 1);

	segment->stretches = memory_array(div_up(whole, STRETCH_BYTES), sizeof(*segment->stretches));
	if (!segment->stretches)
		return -ENOMEM;
	for (uint64_t at = 0; at < whole; at += STRETCH_BYTES) {
		struct fill_stretch *stretch = &segment->stretches[segment->n_stretches++];

		*stretch = (struct fill_stretch){.job.run = prepare_run, .segment = segment,
						 .offset = at,
						 .n_bytes = min_u64(STRETCH_BYTES, whole - at)};
		pthread_mutex_lock(&fill->mutex);
		fill->n_jobs++;
		pthread_mutex_unlock(&fill->mutex);
		pool_submit(fill->load->verifiers, &stretch->job, POOL_AHEAD);
	}
	return 0;
}

/* Every piece lies within one huge page, so within one stretch, or behind them all. */
static bool is_ready(struct fill *fill, const struct fill_piece *piece)
{
	const struct fill_segment *segment = piece->segment;
	uint64_t i = piece->offset / STRETCH_BYTES;
	bool ready;

	pthread_mutex_lock(&fill->mutex);
	ready = i >= segment->n_stretches || segment->stretches[i].is_ready;
	pthread_mutex_unlock(&fill->mutex);
	return ready;
}

static void start_job(struct fill *fill, struct fill_piece *piece)
{
	uint64_t most = 2 * (uint64_t)fill->load->config->n_workers;

	while (value_of(fill, &fill->n_reading) >= most)
		wait_for_change(fill);
	piece->job.run = read_job_run;
	pthread_mutex_lock(&fill->mutex);
	fill->n_jobs++;
	fill->n_reading++;
	pthread_mutex_unlock(&fill->mutex);
	pool_submit(fill->load->verifiers, &piece->job, POOL_AHEAD);
}

static void start(struct fill *fill, struct fill_piece *piece)
{
	enum page_cache cached = page_cache_has(fill->fd, piece->file_offset, piece->n_bytes);

	while (!is_ready(fill, piece))
		wait_for_change(fill);
	piece->direct = cached != PAGE_CACHE_ALL && fill->direct_fd >= 0 &&
			!__atomic_load_n(&fill->direct_refused, __ATOMIC_RELAXED);
	piece->drop = cached == PAGE_CACHE_NONE;
	if (!piece->direct || !fill->ring) {
		start_job(fill, piece);
		return;
	}
	while (fill->ring && read_ring_start(fill->ring, fill->direct_fd, place_of(piece),
					     piece->n_bytes, piece->file_offset, piece) == -EAGAIN)
		wait_for_change(fill);
}

/* Pieces end at huge pages, so that none waits for one that is not there yet. */
static int cut(struct fill *fill, struct fill_segment *segment)
{
	const struct layout_extent *extents =
		&fill->load->loaded.layout.extents[segment->layout->first_extent];
	uint64_t n = 0;

	for (uint64_t i = 0; i < segment->layout->n_extents; i++)
		n += extents[i].n_bytes / PIECE_BYTES + 2;
	segment->pieces = memory_array(n, sizeof(*segment->pieces));
	if (!segment->pieces)
		return -ENOMEM;
	for (uint64_t i = 0; i < segment->layout->n_extents; i++) {
		uint64_t at = extents[i].offset, end = at + extents[i].n_bytes;

		while (at < end) {
			uint64_t next = min_u64(end, at - at % PIECE_BYTES + PIECE_BYTES);

			segment->pieces[segment->n_pieces++] = (struct fill_piece){
				.segment = segment,
				.file_offset = extents[i].file_offset + at - extents[i].offset,
				.offset = at,
				.n_bytes = (uint32_t)(next - at),
			};
			at = next;
		}
	}
	return 0;
}

/* With room for the last huge page, if there is; the charge of those before may be given back soon. */
static int charge(struct fill *fill, const struct layout_segment *layout, bool ahead,
		  struct charge *ret_charge)
{
	uint64_t n_bytes = layout->n_bytes;
	struct budget *budget = fill->load->budget;
	int r;

	if (fill->load->config->huge_pages && n_bytes % HUGEPAGE_BYTES >= TAIL_LEAST &&
	    !budget_charge(budget, BUDGET_INFLIGHT, align_up(n_bytes, HUGEPAGE_BYTES), ret_charge))
		return 0;
	for (;;) {
		uint64_t n_open = value_of(fill, &fill->n_open);

		r = budget_charge(budget, BUDGET_INFLIGHT, n_bytes, ret_charge);
		if (!r || !n_open || ahead || fill_is_over(fill))
			return r;
		wait_for_change(fill);
	}
}

static int open_segment(struct fill *fill, uint32_t id, bool ahead)
{
	struct loaded_model *loaded = &fill->load->loaded;
	const struct store_config *config = fill->load->config;
	struct fill_segment *segment = &fill->segments[id];
	struct charge charged = {0};
	int r;

	*segment = (struct fill_segment){.fill = fill, .layout = &loaded->layout.segments[id],
					 .region = &loaded->segments[id].region};
	r = charge(fill, segment->layout, ahead, &charged);
	if (!r)
		r = region_create("dcmem-segment", charged.n_bytes, config, segment->region);
	if (r) {
		charge_release(&charged);
		return r;
	}
	segment->region->charge = charged;
	pthread_mutex_lock(&fill->mutex);
	fill->n_open++;
	pthread_mutex_unlock(&fill->mutex);
	r = cut(fill, segment);
	if (!r && config->huge_pages && charged.n_bytes >= HUGEPAGE_BYTES &&
	    !hugepage_advise(segment->region->data, charged.n_bytes))
		r = prepare(fill, segment);
	return r;
}

/* Up to number i, which waits until others are done; and some after it, where there is room now. */
static int open_up_to(struct fill *fill, uint32_t i)
{
	struct loaded_model *loaded = &fill->load->loaded;
	uint64_t end = min_u64(loaded->layout.n_segments, (uint64_t)i + 1 + OPEN_AHEAD);
	int r = 0;

	while (loaded->n_segments < end && !r && !fill_is_over(fill)) {
		uint32_t id = loaded->n_segments;

		if (value_of(fill, &fill->n_open) >= OPEN_MOST) {
			if (id > i)
				break;
			wait_for_change(fill);
			continue;
		}
		loaded->segments[id] = (struct segment){.region = REGION_NONE, .generation = 1};
		r = open_segment(fill, id, id > i);
		if (r == STORE_E_BUDGET && id > i)
			return 0;
		loaded->n_segments = id + 1;
	}
	return r;
}

static int open_direct(int fd)
{
	char path[64];

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

static int fill_all(struct fill *fill)
{
	struct model_load *load = fill->load;
	uint32_t n_segments = load->loaded.layout.n_segments;
	int r = 0;

	for (uint32_t i = 0; i < n_segments && !r && !fill_is_over(fill); i++) {
		const struct fill_segment *segment = &fill->segments[i];

		r = open_up_to(fill, i);
		for (uint64_t k = 0; k < segment->n_pieces && !r && !fill_is_over(fill); k++)
			start(fill, &segment->pieces[k]);
	}
	pthread_mutex_lock(&fill->mutex);
	if (r)
		fill_fail(fill, r);
	pthread_mutex_unlock(&fill->mutex);
	while ((fill->ring && read_ring_n_started(fill->ring)) || value_of(fill, &fill->n_jobs))
		wait_for_change(fill);
	if (fill->result)
		return message_set(fill->result, "%s", fill->message);
	return model_load_is_over(load) ? message_set(-ECANCELED, "loading was given up") : 0;
}

int load_fill(struct model_load *load, const struct container *container)
{
	uint32_t n_segments = load->loaded.layout.n_segments;
	struct fill fill = {.load = load, .fd = container->fd, .direct_fd = -1};
	int r;

	fill.segments = memory_array(n_segments ? n_segments : 1, sizeof(*fill.segments));
	if (!fill.segments)
		return -ENOMEM;
	(void)pthread_mutex_init(&fill.mutex, NULL);
	(void)pthread_cond_init(&fill.changed, NULL);
	fill.direct_fd = open_direct(fill.fd);
	if (fill.direct_fd >= 0 && !load->config->no_uring)
		(void)read_ring_new(DEPTH, &fill.ring); /* without one, threads read */
	r = fill_all(&fill);
	fill.ring = read_ring_free(fill.ring);
	for (uint32_t i = 0; i < n_segments; i++) {
		memory_free(fill.segments[i].pieces);
		memory_free(fill.segments[i].stretches);
	}
	memory_free(fill.segments);
	close_fd(fill.direct_fd);
	(void)pthread_cond_destroy(&fill.changed);
	(void)pthread_mutex_destroy(&fill.mutex);
	return r;
}
