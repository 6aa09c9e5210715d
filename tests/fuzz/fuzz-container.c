/* SPDX-License-Identifier: Apache-2.0 */
/* A container: opened, and all of its pages and files read, with hashes that fit after damage. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "fuzz/fuzz.h"
#include "model/container.h"
#include "unit/make-container.h"

#define MAX_PAGES 2000U /* of an input: a form may be long, the work is to stay short */

static struct codec_context *codec;

static void read_page(struct container *c, const struct container_tensor *tensor,
		      const struct container_form *form, uint64_t i)
{
	const struct container_page *page;
	uint64_t n = index_page_bytes(tensor, form->first_page + i);
	void *stored, *decoded = memory_alloc(n);

	if (!decoded || index_page(&c->index, form->page_record + i, &page) != 0)
		abort(); /* index_check() let it through */
	stored = memory_alloc(page->stored_bytes);
	if (!stored)
		abort();
	if (container_read_segment(c, form->segment, page->offset, stored, page->stored_bytes) == 0)
		(void)container_decode_page(codec, page, stored, decoded, n);
	memory_free(stored);
	memory_free(decoded);
}

void fuzz_one(const uint8_t *data, size_t n_bytes)
{
	static int fd = -1;
	struct container c;
	unsigned left = MAX_PAGES;

	if (!codec)
		codec = codec_context_new();
	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (!codec || fd < 0 || ftruncate(fd, 0) < 0 || io_write_at(fd, data, n_bytes, 0) != 0)
		abort();
	if (container_open_fd(&c, fd, "fuzz") != 0)
		return;
	for (uint64_t id = 0; id < c.index.n_tensors && left; id++) {
		const struct container_hint *hints;
		unsigned n_hints;
		const struct container_tensor *tensor;
		const struct container_form *form;
		const char *name;
		uint64_t found;

		if (index_tensor(&c.index, id, &tensor) != 0 ||
		    index_tensor_name(&c.index, tensor, &name) != 0 ||
		    index_find(&c.index, name, &found) != 0 || found != id)
			abort();
		if (index_hints(&c.index, id, &hints, &n_hints) != 0)
			abort();
		for (unsigned h = 0; h < n_hints; h++)
			if (hints[h].tensor != id || hints[h].stored_bytes > tensor->n_bytes ||
			    (h && hints[h].stored_bytes >= hints[h - 1].stored_bytes))
				abort();
		for (uint64_t f = 0; f < tensor->n_forms && left; f++) {
			if (index_form(&c.index, tensor->first_form + f, &form) != 0)
				abort();
			for (uint64_t i = 0; i < form->n_pages && left; i++, left--)
				read_page(&c, tensor, form, i);
		}
	}
	memory_free(c.index_bytes);
}

size_t fuzz_seed(unsigned i, uint8_t *buffer, size_t capacity)
{
	static uint8_t bytes[16384];
	const struct make_tensor tensors[] = {
		{"weight", DCMEM_I8, 2, {64, 128}, 8192, bytes, 4096, CODEC_PAIR_8, 0, 1},
		{"weight_scale", DCMEM_F32, 1, {64}, 256, bytes, 4096, CODEC_RAW},
		{"half", DCMEM_BF16, 2, {32, 64}, 4096, bytes, 2048, CODEC_ZSTD_PLANES_16},
		{"none", DCMEM_F32, 1, {0}, 0, bytes, 4096, CODEC_RAW},
	};
	const struct container_companion companion = {
		.tensor = 0, .companion = 1, .relation = DCMEM_REL_SCALE, .scheme = 1, .axis = 0};
	const struct container_hint hints[] = {
		{.tensor = 0, .stored_bytes = 8192, .decode_ps = 40, .effort = 1},
		{.tensor = 0, .stored_bytes = 3000, .decode_ps = 250, .codec = CODEC_PAIR_8, .effort = 1},
		{.tensor = 1, .stored_bytes = 256, .decode_ps = 40, .effort = 1},
	};
	char path[64];
	size_t n;
	FILE *file;

	if (i >= 2)
		return 0;
	for (size_t k = 0; k < sizeof(bytes); k++)
		bytes[k] = (uint8_t)(k * k % 7 + k % 5);
	(void)snprintf(path, sizeof(path), "/tmp/dcmem-fuzz-%d.dcmem", (int)getpid());
	if (make_container_hints(path, tensors + 2 * i, i ? 2 : 4, &companion, i ? 0 : 1, "{}", hints,
				 i ? 0 : 3) != 0)
		abort();
	file = fopen(path, "rb");
	if (!file)
		abort();
	n = fread(buffer, 1, capacity, file);
	(void)fclose(file);
	(void)unlink(path);
	return n;
}

void fuzz_mend(uint8_t *data, size_t n_bytes)
{
	struct container_header header;

	if (n_bytes < sizeof(header))
		return;
	memcpy(&header, data, sizeof(header));
	header.file_bytes = n_bytes;
	if (range_fits(header.index_offset, header.index_bytes, n_bytes))
		header.index_hash = hash_64(data + header.index_offset, header.index_bytes);
	header.header_hash = hash_64(&header, offsetof(struct container_header, header_hash));
	memcpy(data, &header, sizeof(header));
}
