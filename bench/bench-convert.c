/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a container page by page, in batches that several threads decode and encode, and writes it
 * in another form. Every page is checked against its hash on the way.
 */
#include "bench-convert.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/parallel.h"
#include "base/range.h"
#include "codec/codec.h"
#include "model/container.h"
#include "model/writer.h"

#define N_SLOTS 16

/* Sums the bytes at even and at odd places in 16-bit lanes, which hold 128 words of 0xff each. */
uint64_t bench_sum_bytes(const void *data, size_t n_bytes)
{
	static const uint64_t low = 0x00ff00ff00ff00ffULL;
	const uint8_t *bytes = data;
	uint64_t sum = 0;

	while (n_bytes >= 1024) {
		uint64_t even[2] = { 0 }, odd[2] = { 0 };

		for (size_t i = 0; i < 1024; i += 16) {
			uint64_t word[2];

			memcpy(word, bytes + i, sizeof(word));
			for (unsigned k = 0; k < 2; k++) {
				even[k] += word[k] & low;
				odd[k] += word[k] >> 8 & low;
			}
		}
		for (unsigned k = 0; k < 2; k++)
			for (unsigned lane = 0; lane < 64; lane += 16)
				sum += (even[k] >> lane & 0xffff) + (odd[k] >> lane & 0xffff);
		bytes += 1024;
		n_bytes -= 1024;
	}
	while (n_bytes--)
		sum += *bytes++;
	return sum;
}

struct slot {
	uint8_t *stored, *decoded, *encoded;
	struct codec_context *codec;
	const struct container_page *page;
	uint32_t n_bytes;
	struct container_page record; /* of the new form */
	uint64_t sum;
	int result;
};

struct convert {
	struct container container;
	struct slot slots[N_SLOTS];
	uint32_t segment; /* of the batch */
	bool encodes;
	uint32_t id;
	unsigned n_jobs;
	const atomic_bool *cancel;
};

static void encode(struct convert *convert, struct slot *slot)
{
	size_t n = slot->n_bytes;
	int r = CODEC_E_INCOMPRESSIBLE;

	if (convert->id != CODEC_RAW)
		r = codec_encode(slot->codec, convert->id, 1, slot->decoded, slot->n_bytes,
				 slot->encoded, slot->n_bytes - 1, &n);
	slot->result = r == CODEC_E_INCOMPRESSIBLE ? 0 : r;
	slot->record = (struct container_page){
		.codec = r ? CODEC_RAW : (uint8_t)convert->id,
		.stored_bytes = r ? slot->n_bytes : (uint32_t)n,
		.decoded_hash = slot->page->decoded_hash,
		.stored_hash = r ? slot->page->decoded_hash : hash_64(slot->encoded, n),
	};
}

static void run_slot(void *data, size_t i)
{
	struct convert *convert = data;
	struct slot *slot = &convert->slots[i];

	slot->result = container_read_segment(&convert->container, convert->segment,
					      slot->page->offset, slot->stored,
					      slot->page->stored_bytes);
	if (!slot->result)
		slot->result = container_decode_page(slot->codec, slot->page, slot->stored,
						     slot->decoded, slot->n_bytes);
	if (!slot->result && convert->encodes)
		encode(convert, slot);
	else if (!slot->result)
		slot->sum = bench_sum_bytes(slot->decoded, slot->n_bytes);
}

static void convert_deinit(struct convert *convert)
{
	for (unsigned i = 0; i < N_SLOTS; i++) {
		memory_free(convert->slots[i].stored);
		memory_free(convert->slots[i].decoded);
		memory_free(convert->slots[i].encoded);
		codec_context_free(convert->slots[i].codec);
	}
	container_close(&convert->container);
}

static int convert_init(struct convert *convert, const char *from, bool encodes, uint32_t id,
			unsigned n_jobs, const atomic_bool *cancel)
{
	int r;

	*convert = (struct convert){ .encodes = encodes, .id = id, .n_jobs = n_jobs,
				     .cancel = cancel };
	r = container_open(&convert->container, from);
	if (r)
		return r;
	for (unsigned i = 0; i < N_SLOTS; i++) {
		struct slot *slot = &convert->slots[i];

		slot->stored = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
		slot->decoded = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
		slot->encoded = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
		slot->codec = encodes ? codec_context_new_encoder() : codec_context_new();
		if (!slot->stored || !slot->decoded || !slot->encoded || !slot->codec) {
			convert_deinit(convert);
			return message_set(-ENOMEM, "not enough memory to convert %s", from);
		}
	}
	return 0;
}

/* Every page of a tensor, in order. */
static int each_page(struct convert *convert, const struct container_tensor *tensor,
		     int (*each)(void *data, const struct slot *slot), void *data)
{
	const struct index *index = &convert->container.index;
	const struct container_form *form;
	uint64_t page = 0;
	int r = 0;

	if (!tensor->n_bytes)
		return 0;
	r = index_form(index, tensor->first_form, &form);
	while (!r && page < form->n_pages) {
		size_t n = min_u64(N_SLOTS, form->n_pages - page);

		if (convert->cancel && atomic_load(convert->cancel))
			return message_set(-EINTR, "stopped by a signal");
		convert->segment = form->segment;
		for (size_t i = 0; i < n && !r; i++) {
			convert->slots[i].n_bytes = (uint32_t)index_page_bytes(tensor, page + i);
			r = index_page(index, form->page_record + page + i,
				       &convert->slots[i].page);
		}
		if (!r)
			parallel_for(convert->n_jobs, n, run_slot, convert);
		for (size_t i = 0; i < n && !r; i++)
			r = convert->slots[i].result ? convert->slots[i].result :
						       each(data, &convert->slots[i]);
		page += n;
	}
	return r;
}

static int write_page(void *data, const struct slot *slot)
{
	return writer_page(data, &slot->record,
			   slot->record.codec == CODEC_RAW ? slot->decoded : slot->encoded);
}

static int convert_tensor(struct convert *convert, uint64_t id, struct writer *writer)
{
	const struct index *index = &convert->container.index;
	const struct container_tensor *tensor;
	struct container_tensor record;
	const char *name;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_tensor_name(index, tensor, &name);
	if (r)
		return r;
	record = (struct container_tensor){ .dtype = tensor->dtype, .n_dims = tensor->n_dims,
					    .n_bytes = tensor->n_bytes,
					    .page_bytes = tensor->page_bytes, .file = tensor->file,
					    .file_offset = tensor->file_offset };
	memcpy(record.dims, tensor->dims, sizeof(record.dims));
	r = writer_tensor_begin(writer, name, tensor->name_bytes, &record,
				convert->id == CODEC_RAW);
	if (!r)
		r = each_page(convert, tensor, write_page, writer);
	return r ? r : writer_tensor_end(writer);
}

static int convert_file(struct convert *convert, uint64_t id, struct writer *writer)
{
	const struct index *index = &convert->container.index;
	_cleanup_(cleanup_memory) void *blob = NULL;
	const struct container_file *file;
	const char *name;
	int r = index_file(index, id, &file);

	if (!r)
		r = index_file_name(index, file, &name);
	if (!r)
		r = container_read_blob(&convert->container, file, &blob);
	if (!r)
		r = writer_file_begin(writer, name, file->kind);
	if (!r)
		r = writer_file_data(writer, blob, file->blob_bytes);
	return r ? r : writer_file_end(writer, file->file_bytes, file->file_hash);
}

int bench_convert(const char *from, const char *to, uint32_t id, unsigned n_jobs,
		  const atomic_bool *cancel)
{
	struct convert convert;
	struct writer *writer = NULL;
	uint64_t total = 0;
	int r = convert_init(&convert, from, true, id, n_jobs, cancel);

	if (r)
		return r;
	for (uint64_t i = 0; i < convert.container.index.n_tensors && !r; i++) {
		const struct container_tensor *tensor;

		r = index_tensor(&convert.container.index, i, &tensor);
		if (!r)
			total += align_up(tensor->n_bytes, CONTAINER_ALIGN);
	}
	if (!r)
		r = writer_new(&writer, to, total);
	for (uint64_t i = 0; i < convert.container.index.n_tensors && !r; i++)
		r = convert_tensor(&convert, i, writer);
	for (uint64_t i = 0; i < convert.container.index.n_files && !r; i++)
		r = convert_file(&convert, i, writer);
	if (!r)
		r = writer_commit(writer, "converted by a benchmark");
	writer_free(writer);
	convert_deinit(&convert);
	return r;
}

struct flat {
	FILE *file;
	uint64_t n_bytes, sum;
};

static int add_flat(void *data, const struct slot *slot)
{
	struct flat *flat = data;

	flat->n_bytes += slot->n_bytes;
	flat->sum += slot->sum;
	return fwrite(slot->decoded, 1, slot->n_bytes, flat->file) == slot->n_bytes ?
		       0 : message_set(-EIO, "cannot write the decoded model: %s", strerror(errno));
}

int bench_flatten(const char *from, const char *to, unsigned n_jobs, const atomic_bool *cancel,
		  uint64_t *ret_bytes, uint64_t *ret_sum)
{
	struct flat flat = { .file = fopen(to, "we") };
	struct convert convert;
	int r;

	if (!flat.file)
		return message_set(-errno, "cannot write %s: %s", to, strerror(errno));
	r = convert_init(&convert, from, false, CODEC_RAW, n_jobs, cancel);
	if (!r) {
		for (uint64_t i = 0; i < convert.container.index.n_tensors && !r; i++) {
			const struct container_tensor *tensor;

			r = index_tensor(&convert.container.index, i, &tensor);
			if (!r)
				r = each_page(&convert, tensor, add_flat, &flat);
		}
		convert_deinit(&convert);
	}
	if (fclose(flat.file) != 0 && !r)
		r = message_set(-EIO, "cannot write %s", to);
	if (!r) {
		*ret_bytes = flat.n_bytes;
		*ret_sum = flat.sum;
	}
	return r;
}
