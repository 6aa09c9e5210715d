/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The measurement. Owns the regions: one destination, and for each coder a source with its stored
 * pages, laid out as often as needed to be larger than the caches. Refuses to time what does not
 * round-trip, or stores other bytes on another path. The calling thread is pinned meanwhile.
 */
#include "bench-run.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "bench-memory.h"
#include "bench-pool.h"
#include "dcmem/container.h"

#define N_CHUNKS 8 /* encoding is timed over so many parts of the pages */

struct stored_page {
	size_t offset;
	uint32_t n_bytes;
	bool raw;
};

/* The pages as one coder stores them. */
struct form {
	struct stored_page *pages;
	uint8_t *bytes; /* once */
	size_t n_bytes, capacity;
	uint64_t stored_bytes, raw_pages; /* without gaps */
	struct bench_region source;	  /* repeats times */
	size_t stride;
};

struct entry {
	const struct bench_variant *variant;
	struct form *form;
	void *encoder;
	void **decoders; /* one a thread */
	double encode[N_CHUNKS];
	unsigned n_encode;
	double *decode[BENCH_N_KINDS]; /* GB/s of each round */
	double on_cpu[BENCH_N_KINDS];
};

struct run {
	const struct bench_options *options;
	const struct bench_data *data;
	struct entry *entries;
	struct form *forms;
	unsigned n_entries, n_forms, n_threads, n_repeats;
	struct bench_region destination, scratch, work;
	size_t destination_stride;
	struct bench_pool *pool;
	uint64_t done, total; /* steps */
};

const char *bench_kind_name(enum bench_kind kind)
{
	static const char *const names[] = { "dram", "scratch", "cores" };

	return names[kind];
}

void bench_result_deinit(struct bench_result *result)
{
	memory_free(result->rows);
	*result = (struct bench_result){ 0 };
}

static int step(struct run *run)
{
	run->done++;
	if (run->options->progress)
		run->options->progress(run->options->user, run->done, run->total);
	return run->options->cancel && atomic_load(run->options->cancel) ?
		       message_set(-ECANCELED, "stopped") :
		       0;
}

static void take_path(const struct entry *entry)
{
	(void)cpu_path_force(entry->variant->path);
}

static uint64_t thread_ns(void)
{
	struct timespec now;

	return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) ?
		       0 : (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static double gb_per_s(uint64_t n_bytes, uint64_t ns)
{
	return (double)n_bytes / (double)(ns ? ns : 1);
}

/* --- setting up --- */

static void cleanup_run(struct run *run)
{
	bench_pool_free(run->pool);
	for (unsigned i = 0; i < run->n_entries; i++) {
		struct entry *entry = &run->entries[i];
		const struct bench_coder *coder = &entry->variant->coder;

		if (entry->encoder)
			coder->close(entry->encoder);
		for (unsigned t = 0; entry->decoders && t < run->n_threads; t++)
			if (entry->decoders[t])
				coder->close(entry->decoders[t]);
		memory_free(entry->decoders);
		for (unsigned k = 0; k < BENCH_N_KINDS; k++)
			memory_free(entry->decode[k]);
	}
	for (unsigned i = 0; i < run->n_forms; i++) {
		memory_free(run->forms[i].pages);
		memory_free(run->forms[i].bytes);
		bench_region_deinit(&run->forms[i].source);
	}
	memory_free(run->entries);
	memory_free(run->forms);
	bench_region_deinit(&run->destination);
	bench_region_deinit(&run->scratch);
	bench_region_deinit(&run->work);
}

static int no_memory(void)
{
	return message_set(-ENOMEM, "no memory to measure in; try fewer codecs, or less --mib");
}

static int entry_init(struct run *run, struct entry *entry)
{
	const struct bench_coder *coder = &entry->variant->coder;

	take_path(entry);
	entry->decoders = memory_zalloc(run->n_threads * sizeof(*entry->decoders));
	if (!entry->decoders)
		return no_memory();
	for (unsigned t = 0; t < run->n_threads; t++) {
		entry->decoders[t] = coder->open(coder, false);
		if (!entry->decoders[t])
			return no_memory();
	}
	if (coder->encode) {
		entry->encoder = coder->open(coder, true);
		if (!entry->encoder)
			return no_memory();
	}
	for (unsigned k = 0; k < BENCH_N_KINDS; k++) {
		if (!run->options->kinds[k])
			continue;
		entry->on_cpu[k] = 1;
		entry->decode[k] = memory_array(run->options->rounds, sizeof(double));
		if (!entry->decode[k])
			return no_memory();
	}
	return 0;
}

/* Variants of one coder share a form, and so do all copies. */
static bool share_form(const struct bench_variant *a, const struct bench_variant *b)
{
	return (a->coder.is_copy && b->coder.is_copy) || strcmp(a->coder.name, b->coder.name) == 0;
}

static int run_init(struct run *run, const struct bench_variant *variants, unsigned n_variants)
{
	const struct bench_options *options = run->options;
	unsigned n_kinds = 0;
	int r;

	run->n_repeats = (unsigned)div_up(options->region_bytes, run->data->page_bytes);
	run->n_threads = 1;
	if (options->kinds[BENCH_CORES]) {
		r = bench_pool_new(&run->pool, options->machine);
		if (r)
			return message_set(r, "cannot start threads: %s", strerror(-r));
		run->n_threads = bench_pool_threads(run->pool);
	}
	run->entries = memory_zalloc(n_variants * sizeof(*run->entries));
	run->forms = memory_zalloc(n_variants * sizeof(*run->forms));
	if (!run->entries || !run->forms)
		return no_memory();
	for (unsigned i = 0; i < n_variants; i++) {
		struct entry *entry = &run->entries[run->n_entries++];

		entry->variant = &variants[i];
		for (unsigned k = 0; k < i && !entry->form; k++)
			if (share_form(&variants[k], &variants[i]))
				entry->form = run->entries[k].form;
		if (!entry->form) {
			entry->form = &run->forms[run->n_forms++];
			entry->form->pages = memory_zalloc(run->data->n_pages *
							   sizeof(*entry->form->pages));
			if (!entry->form->pages)
				return no_memory();
		}
		r = entry_init(run, entry);
		if (r)
			return r;
	}
	for (unsigned k = 0; k < BENCH_N_KINDS; k++)
		n_kinds += options->kinds[k];
	run->total = (uint64_t)n_variants * (N_CHUNKS + 1 + n_kinds * options->rounds);
	run->destination_stride = align_up(run->data->n_bytes, BENCH_PAGE_ALIGN);
	r = bench_region_init(&run->destination, run->destination_stride * run->n_repeats);
	if (!r)
		r = bench_region_init(&run->scratch, CONTAINER_MAX_PAGE_BYTES);
	if (!r)
		r = bench_region_init(&run->work, run->data->n_bytes / N_CHUNKS +
							  CONTAINER_MAX_PAGE_BYTES +
							  BENCH_CODER_SLACK);
	return r ? no_memory() : 0;
}

/* --- encoding --- */

/* Appends a stored page; raw ones are aligned, as in a container. */
static int form_add(struct form *form, size_t page, const uint8_t *bytes, uint32_t n_bytes,
		    bool raw)
{
	size_t at = raw ? align_up(form->n_bytes, BENCH_PAGE_ALIGN) : form->n_bytes;
	void *array = form->bytes;
	int r = memory_grow(&array, &form->capacity, form->n_bytes, at + n_bytes, 1);

	form->bytes = array;
	if (r)
		return no_memory();
	memcpy(form->bytes + at, bytes, n_bytes);
	form->pages[page] = (struct stored_page){ .offset = at, .n_bytes = n_bytes, .raw = raw };
	form->n_bytes = at + n_bytes;
	form->stored_bytes += n_bytes;
	form->raw_pages += raw;
	return 0;
}

/* The stored pages of [first, last) that lie in work, to the form; if it has them from another path
 * already, they are compared. */
static int keep_chunk(struct run *run, struct entry *entry, size_t first, size_t last,
		      const uint32_t *sizes)
{
	const uint8_t *at = run->work.base;
	struct form *form = entry->form;

	for (size_t i = first; i < last; i++) {
		uint32_t whole = run->data->pages[i].n_bytes, n = sizes[i];
		bool raw = n == whole;
		int r = 0;

		if (form->pages[i].n_bytes == 0)
			r = form_add(form, i, at, n, raw);
		else if (form->pages[i].n_bytes != n ||
			 memcmp(form->bytes + form->pages[i].offset, at, n) != 0)
			r = message_set(-EBADMSG, "%s: path %s stores other bytes than another",
					entry->variant->coder.name,
					cpu_path_name(entry->variant->path));
		if (r)
			return r;
		at += n;
	}
	return 0;
}

static int encode_chunk(struct run *run, struct entry *entry, size_t first, size_t last,
			uint32_t *sizes)
{
	const struct bench_coder *coder = &entry->variant->coder;
	bool cpu_time = run->options->cpu_time;
	uint64_t begin, n_bytes = 0;
	uint8_t *at = run->work.base;

	take_path(entry);
	begin = cpu_time ? thread_ns() : clock_now_ns();
	for (size_t i = first; i < last; i++) {
		const struct bench_page *page = &run->data->pages[i];
		const uint8_t *src = run->data->bytes + page->offset;
		int64_t n = coder->encode ?
				    coder->encode(coder, entry->encoder, src, page->n_bytes, at) :
				    0;

		if (n < 0)
			return message_set((int)n, "%s: cannot encode: %s", coder->name,
					   strerror((int)-n));
		if (n == 0 || n >= page->n_bytes) {
			memcpy(at, src, page->n_bytes);
			n = page->n_bytes;
		}
		sizes[i] = (uint32_t)n;
		at += n;
		n_bytes += page->n_bytes;
	}
	if (coder->encode && n_bytes)
		entry->encode[entry->n_encode++] =
			gb_per_s(n_bytes, (cpu_time ? thread_ns() : clock_now_ns()) - begin);
	return keep_chunk(run, entry, first, last, sizes);
}

static int encode_all(struct run *run)
{
	size_t n_pages = run->data->n_pages, first = 0;
	_cleanup_(cleanup_memory) uint32_t *sizes = memory_array(n_pages, sizeof(*sizes));
	int r;

	if (!sizes)
		return no_memory();
	/* Chunks by bytes, so that each fits the work region. */
	for (unsigned chunk = 0; chunk < N_CHUNKS; chunk++) {
		uint64_t end = run->data->n_bytes * (chunk + 1) / N_CHUNKS;
		size_t last = first;

		while (last < n_pages && run->data->pages[last].offset < end)
			last++;
		for (unsigned i = 0; i < run->n_entries; i++) {
			struct entry *entry = &run->entries[(i + chunk) % run->n_entries];

			r = encode_chunk(run, entry, first, last, sizes);
			if (!r)
				r = step(run);
			if (r)
				return r;
		}
		first = last;
	}
	return 0;
}

static int lay_out(struct run *run)
{
	for (unsigned i = 0; i < run->n_forms; i++) {
		struct form *form = &run->forms[i];

		form->stride = align_up(form->n_bytes, BENCH_PAGE_ALIGN);
		if (bench_region_init(&form->source, form->stride * run->n_repeats))
			return no_memory();
		for (unsigned k = 0; k < run->n_repeats; k++)
			memcpy(form->source.base + k * form->stride, form->bytes, form->n_bytes);
		form->bytes = memory_free(form->bytes);
	}
	return 0;
}

/* --- decoding --- */

/* One run of one coder; pages are counted through all repeats. */
struct job {
	const struct run *run;
	const struct entry *entry;
	enum bench_kind kind;
	atomic_uint n_wrong;
	_Atomic uint64_t sum; /* keeps the sums from being optimized away */
};

static uint64_t sum_words(const uint8_t *bytes, size_t n_bytes)
{
	uint64_t sum = 0, word;

	for (size_t i = 0; i + 8 <= n_bytes; i += 8) {
		memcpy(&word, bytes + i, 8);
		sum += word;
	}
	return sum;
}

static void decode_pages(struct job *job, void *decoder, size_t first, size_t last)
{
	const struct run *run = job->run;
	const struct form *form = job->entry->form;
	const struct bench_coder *coder = &job->entry->variant->coder;
	bool scratch = job->kind == BENCH_SCRATCH;
	size_t n_pages = run->data->n_pages;
	unsigned n_wrong = 0;
	uint64_t sum = 0;

	for (size_t i = first; i < last; i++) {
		const struct bench_page *page = &run->data->pages[i % n_pages];
		const struct stored_page *stored = &form->pages[i % n_pages];
		size_t repeat = i / n_pages;
		const uint8_t *src = form->source.base + repeat * form->stride + stored->offset;
		uint8_t *dst = run->destination.base + repeat * run->destination_stride;

		dst = scratch ? run->scratch.base : dst + page->offset;
		if (stored->raw && !coder->is_copy)
			memcpy(dst, src, page->n_bytes);
		else if (coder->decode(coder, decoder, src, stored->n_bytes, dst, page->n_bytes))
			n_wrong++;
		if (!coder->is_copy && hash_64(dst, page->n_bytes) != page->hash)
			n_wrong++;
		if (scratch)
			sum += sum_words(dst, page->n_bytes);
	}
	atomic_fetch_add(&job->n_wrong, n_wrong);
	atomic_fetch_add(&job->sum, sum);
}

static void decode_share(void *user, unsigned thread)
{
	struct job *job = user;
	size_t total = job->run->data->n_pages * job->run->n_repeats, n = job->run->n_threads;

	decode_pages(job, job->entry->decoders[thread], total * thread / n,
		     total * (thread + 1) / n);
}

static int decode_once(struct run *run, struct entry *entry, enum bench_kind kind,
		       double *ret_gb_per_s)
{
	struct job job = { .run = run, .entry = entry, .kind = kind };
	size_t total = run->data->n_pages * run->n_repeats;
	uint64_t ns, cpu_ns;

	take_path(entry);
	if (kind == BENCH_CORES) {
		ns = bench_pool_run(run->pool, decode_share, &job);
	} else {
		ns = clock_now_ns();
		cpu_ns = thread_ns();
		decode_pages(&job, entry->decoders[0], 0, total);
		cpu_ns = thread_ns() - cpu_ns;
		ns = clock_now_ns() - ns;
		entry->on_cpu[kind] = fmin(entry->on_cpu[kind],
					   (double)cpu_ns / (double)max_u64(ns, 1));
		ns = run->options->cpu_time ? cpu_ns : ns;
	}
	if (atomic_load(&job.n_wrong))
		return message_set(-EBADMSG, "%s: a page did not decode to its bytes",
				   entry->variant->coder.name);
	*ret_gb_per_s = gb_per_s(run->data->page_bytes * run->n_repeats, ns);
	return 0;
}

/* Byte for byte, into memory that holds something else. */
static int verify(struct run *run, struct entry *entry)
{
	const struct bench_data *data = run->data;
	const struct bench_coder *coder = &entry->variant->coder;
	struct job job = { .run = run, .entry = entry, .kind = BENCH_DRAM };

	take_path(entry);
	memset(run->destination.base, 0xa5, data->n_bytes);
	decode_pages(&job, entry->decoders[0], 0, data->n_pages);
	for (size_t i = 0; i < data->n_pages; i++) {
		const struct bench_page *page = &data->pages[i];

		if (memcmp(run->destination.base + page->offset, data->bytes + page->offset,
			   page->n_bytes) != 0 ||
		    atomic_load(&job.n_wrong))
			return message_set(-EBADMSG, "%s (%s): page %zu of %s does not round-trip",
					   coder->name, cpu_path_name(entry->variant->path), i,
					   data->name);
	}
	return step(run);
}

static int time_rounds(struct run *run, enum bench_kind kind)
{
	for (unsigned round = 0; round < run->options->rounds; round++) {
		for (unsigned i = 0; i < run->n_entries; i++) {
			struct entry *entry = &run->entries[(i + round) % run->n_entries];
			int r = decode_once(run, entry, kind, &entry->decode[kind][round]);

			if (!r)
				r = step(run);
			if (r)
				return r;
		}
	}
	return 0;
}

/* --- results --- */

static const struct entry *find_entry(const struct run *run, const char *name)
{
	for (unsigned i = 0; i < run->n_entries; i++)
		if (strcmp(run->entries[i].variant->coder.name, name) == 0)
			return &run->entries[i];
	return NULL;
}

static int ratio_of_rounds(const struct run *run, const struct entry *entry, const char *name,
			   enum bench_kind kind, double *ret_ratio)
{
	unsigned n = run->options->rounds;
	_cleanup_(cleanup_memory) double *ratios = memory_array(n, sizeof(*ratios));
	const struct entry *other = find_entry(run, name);

	if (!ratios)
		return no_memory();
	if (!other)
		return 0;
	for (unsigned i = 0; i < n; i++)
		ratios[i] = entry->decode[kind][i] / other->decode[kind][i];
	*ret_ratio = bench_stats_of(ratios, n).median;
	return 0;
}

static int fill_row(const struct run *run, struct entry *entry, enum bench_kind kind,
		    struct bench_row *row)
{
	const struct bench_data *data = run->data;
	int r;

	*row = (struct bench_row){ .variant = entry->variant, .kind = kind };
	row->on_cpu = kind == BENCH_CORES ? 0 : entry->on_cpu[kind];
	row->decoded_bytes = data->page_bytes * run->n_repeats * run->options->rounds;
	if (!entry->variant->coder.is_copy) {
		row->stored_bytes = entry->form->stored_bytes +
				    data->n_pages * sizeof(struct container_page);
		row->raw_pages = entry->form->raw_pages;
		row->ratio = (double)data->page_bytes / (double)row->stored_bytes;
		row->share = row->ratio / data->bound;
		row->encode = bench_stats_of(entry->encode, entry->n_encode);
	}
	r = ratio_of_rounds(run, entry, "zstd-1", kind, &row->to_zstd1);
	if (!r)
		r = ratio_of_rounds(run, entry, "memcpy", kind, &row->to_memcpy);
	return r;
}

static int collect(struct run *run, struct bench_result *ret_result)
{
	struct bench_result result = { .n_repeats = run->n_repeats,
				       .region_bytes = run->data->page_bytes * run->n_repeats,
				       .held_bytes = run->destination.n_bytes,
				       .huge_bytes = run->destination.huge_bytes,
				       .least_stored_bytes = UINT64_MAX };
	int r = 0;

	result.rows = memory_array((size_t)BENCH_N_KINDS * run->n_entries, sizeof(*result.rows));
	if (!result.rows)
		return no_memory();
	for (unsigned i = 0; i < run->n_forms; i++) {
		result.held_bytes += run->forms[i].source.n_bytes;
		result.huge_bytes += run->forms[i].source.huge_bytes;
		result.least_stored_bytes = min_u64(result.least_stored_bytes,
						    run->forms[i].stride * run->n_repeats);
	}
	for (unsigned k = 0; k < BENCH_N_KINDS; k++)
		for (unsigned i = 0; run->options->kinds[k] && i < run->n_entries && !r; i++)
			r = fill_row(run, &run->entries[i], (enum bench_kind)k,
				     &result.rows[result.n_rows++]);
	/* Statistics sort the samples, so ratios of rounds are all taken before. */
	for (unsigned i = 0; i < result.n_rows && !r; i++) {
		struct bench_row *row = &result.rows[i];

		row->decode = bench_stats_of(run->entries[i % run->n_entries].decode[row->kind],
					     run->options->rounds);
	}
	if (r)
		bench_result_deinit(&result);
	else
		*ret_result = result;
	return r;
}

int bench_run(const struct bench_options *options, const struct bench_data *data,
	      const struct bench_variant *variants, unsigned n_variants,
	      struct bench_result *ret_result)
{
	_cleanup_(cleanup_run) struct run run = { .options = options, .data = data };
	enum cpu_path path = cpu_path();
	int r;

	(void)bench_machine_pin(options->machine->pinned);
	r = run_init(&run, variants, n_variants);
	if (!r)
		r = encode_all(&run);
	if (!r)
		r = lay_out(&run);
	for (unsigned i = 0; i < run.n_entries && !r; i++)
		r = verify(&run, &run.entries[i]);
	for (unsigned k = 0; k < BENCH_N_KINDS && !r; k++)
		if (options->kinds[k])
			r = time_rounds(&run, (enum bench_kind)k);
	if (!r)
		r = collect(&run, ret_result);
	(void)cpu_path_force(path);
	(void)bench_machine_unpin(options->machine);
	return r;
}
