/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decisions of the packer. Each is a function of the source's bytes and the options alone, so
 * threads share tensors by an atomic counter and write only their own. Tensors count as duplicates
 * after their bytes were compared: a hash is only what suggests it.
 */
#include "model/plan.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/index.h"

#define N_SAMPLES 8 /* pages a tensor: untuned */
#define MAX_JOBS  512
#define CLOSE_ENOUGH 250 /* a faster codec may cost a 250th more */
#define LEAST_SAVING 100 /* one part in 100, else raw, which readers get in place: untuned */

uint32_t plan_page_bytes(const struct plan_tensor *tensor, uint64_t page)
{
	return (uint32_t)min_u64(tensor->page_bytes,
				 tensor->tensor->n_bytes - page * tensor->page_bytes);
}

int plan_read_page(const struct plan *plan, const struct plan_tensor *tensor, uint64_t page,
		   void *data)
{
	const struct source_file *file = &plan->source->files[tensor->file];
	uint64_t offset = file->st.head_bytes + tensor->tensor->offset + page * tensor->page_bytes;
	int r = io_read_at(plan->fds[tensor->file], data, plan_page_bytes(tensor, page), offset);

	if (r == -ENODATA)
		return message_set(-ESTALE,
				   "%s: ends at byte %llu or before, it was longer a moment ago; pack "
				   "again when it is complete",
				   file->path, (unsigned long long)offset);
	return r ? message_set(r, "%s: cannot read at byte %llu: %s", file->path,
			       (unsigned long long)offset, strerror(-r)) :
		   0;
}

static bool is_cancelled(const struct plan *plan)
{
	return plan->options->cancel && atomic_load(plan->options->cancel);
}

/* --- tensors in parallel --- */

struct worker_memory {
	uint8_t *page, *other; /* PACK_PAGE_BYTES each */
	struct hash_stream *hash;
	struct codec_context *codec;
};

struct parallel {
	struct plan *plan;
	int (*each)(struct plan *plan, struct plan_tensor *tensor, struct worker_memory *memory);
	atomic_uint_fast64_t next;
	atomic_bool failed;
	pthread_mutex_t lock; /* result, message */
	int result;
	char message[1024];
};

static void parallel_fail(struct parallel *parallel, int result)
{
	pthread_mutex_lock(&parallel->lock);
	if (parallel->result == 0) {
		parallel->result = result;
		snprintf(parallel->message, sizeof(parallel->message), "%s", message_get());
	}
	pthread_mutex_unlock(&parallel->lock);
	atomic_store(&parallel->failed, true);
}

static void *parallel_run(void *data)
{
	struct parallel *parallel = data;
	struct worker_memory memory = {
		.page = memory_alloc(PACK_PAGE_BYTES),
		.other = memory_alloc(PACK_PAGE_BYTES),
		.hash = hash_stream_new(),
		.codec = codec_context_new_encoder(),
	};

	if (!memory.page || !memory.other || !memory.hash || !memory.codec)
		parallel_fail(parallel, message_set(-ENOMEM, "not enough memory to pack"));
	while (!atomic_load(&parallel->failed)) {
		uint64_t id = atomic_fetch_add(&parallel->next, 1);
		int r;

		if (id >= parallel->plan->n_tensors)
			break;
		r = parallel->each(parallel->plan, &parallel->plan->tensors[id], &memory);
		if (r)
			parallel_fail(parallel, r);
	}
	memory.codec = codec_context_free(memory.codec);
	memory.hash = hash_stream_free(memory.hash);
	memory_free(memory.page);
	memory_free(memory.other);
	return NULL;
}

static int for_each_tensor(struct plan *plan,
			   int (*each)(struct plan *, struct plan_tensor *, struct worker_memory *))
{
	struct parallel parallel = { .plan = plan, .each = each };
	unsigned n = (unsigned)min_u64(min_u64(plan->options->n_jobs, MAX_JOBS), plan->n_tensors);
	pthread_t threads[MAX_JOBS];
	unsigned n_started = 0;

	pthread_mutex_init(&parallel.lock, NULL);
	/* This thread works as well; without any other it just takes longer. */
	while (n_started + 1 < n &&
	       pthread_create(&threads[n_started], NULL, parallel_run, &parallel) == 0)
		n_started++;
	parallel_run(&parallel);
	for (unsigned i = 0; i < n_started; i++)
		pthread_join(threads[i], NULL);
	pthread_mutex_destroy(&parallel.lock);
	return parallel.result ? message_set(parallel.result, "%s", parallel.message) : 0;
}

/* --- names --- */

static int compare_names(const void *a, const void *b, void *data)
{
	const struct plan *plan = data;
	const uint64_t *x = a, *y = b;
	const struct plan_tensor *s = &plan->tensors[*x], *t = &plan->tensors[*y];
	int order = strcmp(s->name, t->name);
	bool s_model = plan->source->files[s->file].is_model;
	bool t_model = plan->source->files[t->file].is_model;

	if (order)
		return order;
	if (s_model != t_model)
		return s_model ? -1 : 1;
	return *x < *y ? -1 : *x > *y;
}

static int qualify(struct plan *plan, struct plan_tensor *tensor, const struct plan_tensor *first)
{
	const struct source_file *file = &plan->source->files[tensor->file];
	const struct source_file *other = &plan->source->files[first->file];
	size_t n = strlen(file->name) + strlen(tensor->name) + 2;

	if (file->is_model)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "%s: tensor %.200s is in %s as well; keep one of the two", file->path,
				   tensor->name, other->name);
	if (n - 1 > CONTAINER_MAX_NAME)
		return message_set(-ENAMETOOLONG, "%s: tensor %.200s: the name is too long",
				   file->path, tensor->name);
	tensor->qualified = memory_alloc(n);
	if (!tensor->qualified)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	snprintf(tensor->qualified, n, "%s:%s", file->name, tensor->name);
	tensor->name = tensor->qualified;
	return 0;
}

static int resolve_names(struct plan *plan)
{
	const struct plan_tensor *first = NULL;
	bool again = false;

	qsort_r(plan->by_name, plan->n_tensors, sizeof(uint64_t), compare_names, plan);
	for (uint64_t i = 0; i < plan->n_tensors; i++) {
		struct plan_tensor *tensor = &plan->tensors[plan->by_name[i]];
		int r;

		if (!first || strcmp(first->name, tensor->name) != 0) {
			first = tensor;
			continue;
		}
		r = qualify(plan, tensor, first);
		if (r)
			return r;
		again = true;
	}
	if (again)
		qsort_r(plan->by_name, plan->n_tensors, sizeof(uint64_t), compare_names, plan);
	for (uint64_t i = 1; again && i < plan->n_tensors; i++) {
		const struct plan_tensor *tensor = &plan->tensors[plan->by_name[i]];

		if (strcmp(plan->tensors[plan->by_name[i - 1]].name, tensor->name) == 0)
			return message_set(SAFETENSORS_E_CORRUPT,
					   "%s: no other name is left for its tensor %.200s: rename it",
					   plan->source->files[tensor->file].path, tensor->name);
	}
	return 0;
}

bool plan_find(const struct plan *plan, const char *name, uint64_t *ret_id)
{
	uint64_t low = 0, high = plan->n_tensors;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		int order = strcmp(name, plan->tensors[plan->by_name[middle]].name);

		if (order == 0) {
			*ret_id = plan->by_name[middle];
			return true;
		}
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return false;
}

/* --- duplicates --- */

static int compare_twins(const void *a, const void *b, void *data)
{
	const struct plan *plan = data;
	const uint64_t *x = a, *y = b;
	const struct plan_tensor *s = &plan->tensors[*x], *t = &plan->tensors[*y];
	int order;

	if (s->tensor->n_bytes != t->tensor->n_bytes)
		return s->tensor->n_bytes < t->tensor->n_bytes ? -1 : 1;
	if (s->tensor->dtype != t->tensor->dtype)
		return s->tensor->dtype < t->tensor->dtype ? -1 : 1;
	if (s->page_bytes != t->page_bytes)
		return s->page_bytes < t->page_bytes ? -1 : 1;
	order = memcmp(s->hash, t->hash, sizeof(s->hash)); /* all 0 at first */
	if (order)
		return order;
	return *x < *y ? -1 : *x > *y;
}

static bool is_twin(const struct plan_tensor *s, const struct plan_tensor *t)
{
	return s->tensor->n_bytes == t->tensor->n_bytes && s->tensor->n_bytes &&
	       s->tensor->dtype == t->tensor->dtype && s->page_bytes == t->page_bytes &&
	       memcmp(s->hash, t->hash, sizeof(s->hash)) == 0;
}

static int hash_twin(struct plan *plan, struct plan_tensor *tensor, struct worker_memory *memory)
{
	if (!tensor->twin)
		return 0;
	hash_stream_reset(memory->hash);
	for (uint64_t page = 0; page < tensor->n_pages; page++) {
		int r = is_cancelled(plan) ? -EINTR :
					     plan_read_page(plan, tensor, page, memory->page);

		if (r)
			return r;
		hash_stream_update(memory->hash, memory->page, plan_page_bytes(tensor, page));
	}
	hash_stream_128(memory->hash, tensor->hash);
	return 0;
}

static int confirm_twin(struct plan *plan, struct plan_tensor *tensor,
			struct worker_memory *memory)
{
	const struct plan_tensor *first;

	if (tensor->same_as == PLAN_UNIQUE)
		return 0;
	first = &plan->tensors[tensor->same_as];
	for (uint64_t page = 0; page < tensor->n_pages; page++) {
		int r = is_cancelled(plan) ? -EINTR :
					     plan_read_page(plan, tensor, page, memory->page);

		if (!r)
			r = plan_read_page(plan, first, page, memory->other);
		if (r)
			return r;
		if (memcmp(memory->page, memory->other, plan_page_bytes(tensor, page)) != 0) {
			tensor->same_as = PLAN_UNIQUE;
			return 0;
		}
	}
	return 0;
}

static int find_twins(struct plan *plan)
{
	_cleanup_(cleanup_memory) uint64_t *ids = memory_array(plan->n_tensors + 1, sizeof(*ids));
	uint64_t first = 0;
	int r;

	if (!ids)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	for (uint64_t i = 0; i < plan->n_tensors; i++)
		ids[i] = i;
	qsort_r(ids, plan->n_tensors, sizeof(*ids), compare_twins, plan);
	for (uint64_t i = 1; i < plan->n_tensors; i++) {
		struct plan_tensor *s = &plan->tensors[ids[i - 1]], *t = &plan->tensors[ids[i]];

		if (is_twin(s, t))
			s->twin = t->twin = true;
	}
	r = for_each_tensor(plan, hash_twin);
	if (r)
		return r;
	qsort_r(ids, plan->n_tensors, sizeof(*ids), compare_twins, plan);
	for (uint64_t i = 1; i < plan->n_tensors; i++) {
		struct plan_tensor *t = &plan->tensors[ids[i]];

		if (!t->twin || !is_twin(&plan->tensors[ids[first]], t))
			first = i;
		else
			t->same_as = ids[first];
	}
	return for_each_tensor(plan, confirm_twin);
}

/* --- codecs --- */

static unsigned candidates(const struct plan *plan, uint32_t dtype,
			   uint8_t ret_ids[CODEC_MAX_CANDIDATES])
{
	unsigned size = dtype == DCMEM_BF16 || dtype == DCMEM_F16 ? 1 : dtype == DCMEM_F32 ? 2 : 0;
	unsigned n = 0;

	switch (plan->options->codec) {
	case PACK_CODEC_RAW:
		break;
	case PACK_CODEC_ZSTD:
		ret_ids[n++] = CODEC_ZSTD;
		break;
	case PACK_CODEC_PAIR:
		ret_ids[n++] = (uint8_t)(CODEC_PAIR_8 + size);
		break;
	case PACK_CODEC_PACK:
		ret_ids[n++] = (uint8_t)(CODEC_PACK_8 + size);
		break;
	default:
		return codec_candidates(dtype, ret_ids);
	}
	ret_ids[n++] = CODEC_RAW;
	return n;
}

int plan_level(const struct plan *plan)
{
	return plan->options->effort == PACK_EFFORT_DENSE ? 2 : 1;
}

/* The fastest to decode stand first, raw last. */
static uint8_t choose(enum pack_effort effort, const uint8_t *ids, const uint64_t *sums,
		      unsigned n_ids, uint64_t total)
{
	uint64_t worth = total - div_up(total, LEAST_SAVING), best = worth + 1, enough;

	for (unsigned k = 0; k < n_ids; k++)
		best = min_u64(best, sums[k]);
	enough = effort == PACK_EFFORT_FAST   ? worth :
		 effort == PACK_EFFORT_DENSE ? best :
					       best + best / CLOSE_ENOUGH;
	if (best > worth)
		return CODEC_RAW;
	for (unsigned k = 0; k < n_ids; k++) {
		if (sums[k] <= enough)
			return ids[k];
	}
	return CODEC_RAW;
}

static int choose_codec(struct plan *plan, struct plan_tensor *tensor,
			struct worker_memory *memory)
{
	uint64_t n_samples = min_u64(N_SAMPLES, tensor->n_pages), total = 0;
	uint64_t sums[CODEC_MAX_CANDIDATES] = { 0 };
	uint8_t ids[CODEC_MAX_CANDIDATES];
	unsigned n_ids = candidates(plan, tensor->tensor->dtype, ids);

	tensor->codec = CODEC_RAW;
	if (tensor->same_as != PLAN_UNIQUE || n_ids < 2)
		return 0;
	for (uint64_t i = 0; i < n_samples; i++) {
		uint64_t page = n_samples > 1 ? i * (tensor->n_pages - 1) / (n_samples - 1) : 0;
		uint32_t n_bytes = plan_page_bytes(tensor, page);
		int r = is_cancelled(plan) ? -EINTR :
					     plan_read_page(plan, tensor, page, memory->page);

		if (r)
			return r;
		total += n_bytes;
		for (unsigned k = 0; k < n_ids; k++) {
			size_t n = n_bytes;

			if (ids[k] != CODEC_RAW)
				r = codec_encode(memory->codec, ids[k], plan_level(plan), memory->page,
						 n_bytes, memory->other, n_bytes - 1, &n);
			if (r < 0)
				return message_set(r, "cannot encode: %s", strerror(-r));
			sums[k] += r ? n_bytes : n;
			r = 0;
		}
	}
	tensor->codec = choose(plan->options->effort, ids, sums, n_ids, total);
	return 0;
}

/* --- companions --- */

static bool ends_with(const char *text, const char *suffix)
{
	size_t n = strlen(text), m = strlen(suffix);

	return n >= m && strcmp(text + n - m, suffix) == 0;
}

static void view_2d(const struct safetensors_tensor *tensor, uint64_t *ret_rows, uint64_t *ret_cols)
{
	*ret_rows = 1;
	*ret_cols = tensor->n_dims ? tensor->dims[tensor->n_dims - 1] : 1;
	for (uint32_t i = 0; i + 1 < tensor->n_dims; i++)
		*ret_rows *= tensor->dims[i]; /* the size was checked to fit */
}

static bool is_quantized_dtype(uint32_t dtype)
{
	return dtype == DCMEM_I8 || dtype == DCMEM_F8_E4M3 || dtype == DCMEM_F8_E5M2;
}

static bool is_scale_dtype(uint32_t dtype)
{
	return dtype == DCMEM_F32 || dtype == DCMEM_BF16 || dtype == DCMEM_F16;
}

/* [] or [1]: per tensor; [rows] or [rows, 1]: per row; [rows, cols / g]: per group of g columns. */
static bool fit_shape(const struct safetensors_tensor *weight,
		      const struct safetensors_tensor *scale, int32_t *ret_axis,
		      uint32_t *ret_group)
{
	uint64_t rows, cols, groups;

	view_2d(weight, &rows, &cols);
	*ret_group = 0;
	if (scale->n_dims == 0 || (scale->n_dims == 1 && scale->dims[0] == 1)) {
		*ret_axis = -1;
		return true;
	}
	*ret_axis = 0;
	if (scale->n_dims == 1)
		return scale->dims[0] == rows;
	groups = scale->dims[1];
	if (scale->n_dims != 2 || scale->dims[0] != rows || groups == 0 || cols % groups)
		return false;
	if (groups > 1 && cols / groups > UINT32_MAX)
		return false;
	*ret_group = groups > 1 ? (uint32_t)(cols / groups) : 0;
	return true;
}

bool plan_companion(const struct plan *plan, uint64_t weight, unsigned relation,
		    struct container_companion *ret_companion)
{
	const struct plan_tensor *tensor = &plan->tensors[weight];
	struct container_companion companion = { .tensor = weight,
						 .relation = (uint16_t)relation,
						 .scheme = 1 };
	_cleanup_(cleanup_memory) char *name = NULL;
	const struct safetensors_tensor *other;
	size_t n = strlen(tensor->name) + 16;

	if (!is_quantized_dtype(tensor->tensor->dtype) || !ends_with(tensor->name, ".weight"))
		return false;
	name = memory_alloc(n);
	if (!name)
		return false;
	snprintf(name, n, "%s%s", tensor->name,
		 relation == DCMEM_REL_SCALE ? "_scale" : "_zero_point");
	if (!plan_find(plan, name, &companion.companion))
		return false;
	other = plan->tensors[companion.companion].tensor;
	if (relation == DCMEM_REL_SCALE && !is_scale_dtype(other->dtype))
		return false;
	if (!fit_shape(tensor->tensor, other, &companion.axis, &companion.group_size))
		return false;
	*ret_companion = companion;
	return true;
}

/* --- all of it --- */

static void add_tensors(struct plan *plan)
{
	uint64_t id = 0;

	for (size_t f = 0; f < plan->source->n_files; f++) {
		const struct safetensors *st = &plan->source->files[f].st;

		for (uint64_t i = 0; i < st->n_tensors; i++, id++) {
			struct plan_tensor *tensor = &plan->tensors[id];
			uint64_t rows, cols, row_bytes;

			tensor->tensor = &st->tensors[i];
			view_2d(tensor->tensor, &rows, &cols);
			row_bytes = cols * dtype_bytes(tensor->tensor->dtype);
			tensor->page_bytes = PACK_PAGE_BYTES;
			if (row_bytes && row_bytes <= PACK_PAGE_BYTES)
				tensor->page_bytes -= PACK_PAGE_BYTES % (uint32_t)row_bytes;
			tensor->n_pages = div_up(tensor->tensor->n_bytes, tensor->page_bytes);
			tensor->name = tensor->tensor->name;
			tensor->file = (uint32_t)f;
			tensor->same_as = PLAN_UNIQUE;
			plan->by_name[id] = id;
		}
	}
}

static int open_files(struct plan *plan)
{
	for (size_t f = 0; f < plan->source->n_files; f++)
		plan->fds[f] = -1;
	for (size_t f = 0; f < plan->source->n_files; f++) {
		int r = plan->source->files[f].kind == CONTAINER_FILE_SAFETENSORS ?
				source_open(&plan->source->files[f], &plan->fds[f]) :
				0;
		if (r)
			return r;
	}
	return 0;
}

int plan_init(struct plan *ret_plan, const struct source *source,
	      const struct pack_options *options)
{
	struct plan plan = { .source = source, .options = options,
			     .n_tensors = source->n_tensors };
	int r = 0;

	plan.tensors = memory_array(plan.n_tensors + 1, sizeof(plan.tensors[0]));
	plan.by_name = memory_array(plan.n_tensors + 1, sizeof(plan.by_name[0]));
	plan.fds = memory_array(source->n_files, sizeof(plan.fds[0]));
	if (!plan.tensors || !plan.by_name || !plan.fds) {
		plan.fds = memory_free(plan.fds);
		r = message_set(-ENOMEM, "not enough memory for the tensor table");
	}
	if (!r) {
		add_tensors(&plan);
		r = open_files(&plan);
	}
	if (!r)
		r = resolve_names(&plan);
	if (!r)
		r = find_twins(&plan);
	if (!r)
		r = for_each_tensor(&plan, choose_codec);
	if (r) {
		plan_deinit(&plan);
		return r;
	}
	*ret_plan = plan;
	return 0;
}

void plan_deinit(struct plan *plan)
{
	for (size_t f = 0; plan->fds && f < plan->source->n_files; f++)
		plan->fds[f] = close_fd(plan->fds[f]);
	for (uint64_t i = 0; plan->tensors && i < plan->n_tensors; i++)
		memory_free(plan->tensors[i].qualified);
	plan->fds = memory_free(plan->fds);
	plan->tensors = memory_free(plan->tensors);
	plan->by_name = memory_free(plan->by_name);
}
