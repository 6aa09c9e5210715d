/* SPDX-License-Identifier: Apache-2.0 */
/* Damaged and hostile containers: refused, or readable to the end without a stray access. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/io.h"
#include "base/memory.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "make-container.h"
#include "model/container.h"

#define N_HINTS 4

static uint8_t *good; /* the bytes of a valid container */
static size_t good_bytes;
static struct container_header good_header;
static struct codec_context *codec;
static int fd = -1;

static int setup(void **state)
{
	static uint8_t weights[6000];
	struct make_tensor tensors[] = {
		{.name = "q.weight", .dtype = DCMEM_I8, .n_dims = 2, .dims = {4, 100},
		 .n_bytes = 400, .bytes = weights, .page_bytes = 200, .n_companions = 1},
		{.name = "q.weight_scale", .dtype = DCMEM_F32, .n_dims = 1, .dims = {4},
		 .n_bytes = 16, .bytes = weights, .page_bytes = 4096},
		{.name = "b", .dtype = DCMEM_BF16, .n_dims = 2, .dims = {30, 100},
		 .n_bytes = 6000, .bytes = weights, .page_bytes = 2000,
		 .codec = CODEC_ZSTD_PLANES_16},
	};
	struct container_companion companion = {
		.tensor = 0, .companion = 1, .relation = DCMEM_REL_SCALE, .scheme = 1};
	struct container_hint hints[N_HINTS] = {
		{.tensor = 0, .stored_bytes = 400, .decode_ps = 50, .encode_ps = 50, .effort = 1},
		{.tensor = 2, .stored_bytes = 6000, .decode_ps = 50, .encode_ps = 50, .effort = 1},
		{.tensor = 2, .stored_bytes = 4000, .decode_ps = 50, .encode_ps = 70,
		 .codec = 200, .effort = 1, .path = 2}, /* a codec of some later version */
		{.tensor = 2, .stored_bytes = 3999, .decode_ps = 900, .encode_ps = 70000,
		 .codec = CODEC_ZSTD_PLANES_16, .effort = 2},
	};
	char path[64];

	for (size_t i = 0; i < sizeof(weights); i++)
		weights[i] = (uint8_t)(i & 1 ? 0x3c + i % 3 : i * 37);
	fd = memfd_create("container", MFD_CLOEXEC);
	codec = codec_context_new();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fd < 0 || !codec || make_container_hints(path, tensors, 3, &companion, 1, "{}",
						      hints, N_HINTS))
		return -1;
	good_bytes = (size_t)lseek(fd, 0, SEEK_END);
	good = memory_alloc(good_bytes);
	if (!good || io_read_at(fd, good, good_bytes, 0))
		return -1;
	memcpy(&good_header, good, sizeof(good_header));
	return 0;
}

static int teardown(void **state)
{
	memory_free(good);
	codec_context_free(codec);
	close(fd);
	return 0;
}

/* Reads all there is; what comes back may be wrong, where from may not. */
static unsigned walk(struct container *c)
{
	unsigned n_pages = 0;

	for (uint64_t id = 0; id < c->index.n_tensors; id++) {
		const struct container_tensor *tensor;
		const struct container_form *form;
		const struct container_page *page;

		assert_int_equal(index_tensor(&c->index, id, &tensor), 0);
		for (uint64_t f = 0; f < tensor->n_forms; f++) {
			assert_int_equal(index_form(&c->index, tensor->first_form + f, &form), 0);
			for (uint64_t i = 0; i < form->n_pages && i < 100; i++) {
				uint64_t n = index_page_bytes(tensor, form->first_page + i);
				void *stored, *decoded = memory_alloc(n);

				assert_int_equal(index_page(&c->index, form->page_record + i, &page), 0);
				stored = memory_alloc(page->stored_bytes);
				assert_int_equal(container_read_segment(c, form->segment, page->offset,
									stored, page->stored_bytes), 0);
				if (container_decode_page(codec, page, stored, decoded, n) == 0)
					n_pages++;
				memory_free(stored);
				memory_free(decoded);
			}
		}
	}
	return n_pages;
}

/* Opens the descriptor as it is: a result, and the pages that were right. */
static int try_open(unsigned *ret_pages)
{
	struct container c;
	int r = container_open_fd(&c, fd, "test");

	if (r == 0) {
		*ret_pages = walk(&c);
		memory_free(c.index_bytes);
	}
	return r;
}

static void put(uint64_t at, const void *bytes, size_t n)
{
	assert_int_equal(pwrite(fd, bytes, n, (off_t)at), n);
}

/* Puts the good index there but for n bytes, with hashes that are right. */
static int try_index(uint64_t at, const void *bytes, size_t n, unsigned *ret_pages)
{
	struct container_header header = good_header;
	uint8_t *index = good + header.index_offset, old[4096];
	int r;

	assert_true(n <= sizeof(old));
	memcpy(old, index + at, n);
	memcpy(index + at, bytes, n);
	header.index_hash = hash_64(index, header.index_bytes);
	header.header_hash = hash_64(&header, offsetof(struct container_header, header_hash));
	put(0, &header, sizeof(header));
	put(header.index_offset, index, header.index_bytes);
	r = try_open(ret_pages);
	memcpy(index + at, old, n);
	put(0, &good_header, sizeof(good_header));
	put(header.index_offset, index, header.index_bytes);
	return r;
}

static void test_good(void **state)
{
	unsigned n_pages = 0;

	assert_int_equal(try_open(&n_pages), 0);
	assert_int_equal(n_pages, 2 + 1 + 3);
}

/* Without new hashes every changed byte of header and index is refused. */
static void test_damaged(void **state)
{
	for (size_t at = 0; at < good_bytes; at++) {
		uint8_t byte = good[at] ^ 0x10;
		unsigned n_pages;

		if (at >= sizeof(good_header) && at < good_header.index_offset)
			continue;
		put(at, &byte, 1);
		assert_int_not_equal(try_open(&n_pages), 0);
		put(at, &good[at], 1);
	}
}

/* Right hashes over wrong bytes: each byte, and each aligned word at its limits. */
static void test_hostile(void **state)
{
	static const uint64_t limits[] = {0, 1, 63, 4096, INT32_MAX, UINT32_MAX, 1ULL << 32,
					  INT64_MAX, 1ULL << 63, UINT64_MAX - 7, UINT64_MAX};
	unsigned n_refused = 0, n_pages;

	for (uint64_t at = 0; at < good_header.index_bytes; at++) {
		for (unsigned bit = 0; bit < 8; bit += 7) {
			uint8_t byte = good[good_header.index_offset + at] ^ (uint8_t)(1U << bit);

			n_refused += try_index(at, &byte, 1, &n_pages) != 0;
		}
	}
	for (uint64_t at = 0; at + 8 <= good_header.index_bytes; at += 8) {
		for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
			n_refused += try_index(at, &limits[i], 8, &n_pages) != 0;
	}
	assert_true(n_refused > good_header.index_bytes);
}

/* Whole records that are right on their own, and wrong beside the others. */
static void test_contradictions(void **state)
{
	const uint8_t *base = good + good_header.index_offset;
	const struct container_index *head = (const struct container_index *)base;
	uint64_t at = head->tables[CONTAINER_TABLE_TENSORS].offset, slots_at, n_slots;
	struct container_tensor tensors[2], changed;
	uint32_t slots[1024];
	unsigned n_pages;

	assert_true(head->tables[CONTAINER_TABLE_TENSORS].count >= 2);
	memcpy(tensors, base + at, sizeof(tensors));
	assert_int_equal(try_index(at, tensors, sizeof(tensors), &n_pages), 0);
	at += sizeof(*tensors);
	changed = tensors[1]; /* two tensors of one name */
	changed.name_offset = tensors[0].name_offset;
	changed.name_bytes = tensors[0].name_bytes;
	assert_int_equal(try_index(at, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = tensors[1]; /* forms of no earlier tensor */
	changed.flags |= CONTAINER_TENSOR_SHARED;
	assert_int_equal(try_index(at, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = tensors[1]; /* forms of an earlier one, unsaid */
	changed.first_form = tensors[0].first_form;
	changed.n_forms = tensors[0].n_forms;
	assert_int_equal(try_index(at, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed.flags |= CONTAINER_TENSOR_SHARED; /* said, but it has another size */
	assert_int_equal(try_index(at, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	slots_at = head->tables[CONTAINER_TABLE_NAMES].offset;
	n_slots = head->tables[CONTAINER_TABLE_NAMES].count;
	assert_true(n_slots > 1 && n_slots <= 1024);
	for (uint64_t i = 0; i < n_slots; i++) /* names where nobody looks */
		memcpy(&slots[i], base + slots_at + 4 * ((i + 1) % n_slots), 4);
	assert_int_equal(try_index(slots_at, slots, 4 * n_slots, &n_pages), INDEX_E_CORRUPT);
}

/* What each tensor's hints are, found without reading those of others. */
static void test_hints(void **state)
{
	const struct container_hint *hints = NULL;
	struct container c;
	unsigned n;

	assert_int_equal(container_open_fd(&c, fd, "test"), 0);
	assert_int_equal(index_hints(&c.index, 0, &hints, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(hints[0].stored_bytes, 400);
	assert_int_equal(index_hints(&c.index, 1, &hints, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(index_hints(&c.index, 2, &hints, &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(hints[0].stored_bytes, 6000);
	assert_int_equal(hints[1].path, 2);
	assert_int_equal(hints[2].encode_ps, 70000);
	assert_int_equal(index_hints(&c.index, 3, &hints, &n), INDEX_E_NOT_FOUND);
	memory_free(c.index_bytes);
}

/* Hints out of order, of no tensor, impossible; tables of a later version. */
static void test_hostile_hints(void **state)
{
	const struct container_index *head =
		(const struct container_index *)(good + good_header.index_offset);
	uint64_t at = head->tables[CONTAINER_TABLE_HINTS].offset, third = at + 2 * sizeof(struct container_hint);
	const struct container_hint *hints = (const void *)(good + good_header.index_offset + at);
	struct container_table table = head->tables[CONTAINER_TABLE_HINTS];
	struct container_hint changed = hints[2];
	unsigned n_pages;

	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), 0);
	changed.decode_ps = hints[1].decode_ps - 1; /* smaller and faster: then why the one before? */
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = hints[2];
	changed.stored_bytes = hints[1].stored_bytes;
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = hints[2];
	changed.tensor = 0;
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed.tensor = 3;
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = hints[2];
	changed.reserved[4] = 1;
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = hints[2];
	changed.codec = CODEC_RAW; /* and smaller than it is */
	assert_int_equal(try_index(third, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	changed = hints[0]; /* larger than its tensor */
	changed.codec = CODEC_PAIR_8;
	changed.stored_bytes = 401;
	assert_int_equal(try_index(at, &changed, sizeof(changed), &n_pages), INDEX_E_CORRUPT);
	table.count = UINT64_MAX / 32;
	at = offsetof(struct container_index, tables) + CONTAINER_TABLE_HINTS * sizeof(table);
	assert_int_equal(try_index(at, &table, sizeof(table), &n_pages), INDEX_E_CORRUPT);
	table = (struct container_table){0};
	assert_int_equal(try_index(at, &table, sizeof(table), &n_pages), 0);
	table = (struct container_table){.offset = 12345678, .count = UINT64_MAX};
	at += sizeof(table);
	assert_int_equal(try_index(at, &table, sizeof(table), &n_pages), 0);
}

static void test_truncated(void **state)
{
	unsigned n_pages;

	for (size_t n = 0; n < good_bytes; n += 61) {
		assert_int_equal(ftruncate(fd, (off_t)n), 0);
		assert_int_equal(try_open(&n_pages), INDEX_E_CORRUPT);
	}
	assert_int_equal(ftruncate(fd, 0), 0);
	put(0, good, good_bytes);
	assert_int_equal(try_open(&n_pages), 0);
}

static void test_not_a_file(void **state)
{
	char path[64];
	struct container c;

	snprintf(path, sizeof(path), "/tmp/dcmem-fifo-%d", (int)getpid());
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_true(container_open(&c, path) < 0);
	unlink(path);
	assert_true(container_open(&c, "/tmp") < 0);
	assert_true(container_open(&c, "/dev/zero") < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),	  cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_hostile),	  cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_not_a_file),   cmocka_unit_test(test_contradictions),
		cmocka_unit_test(test_hints),	  cmocka_unit_test(test_hostile_hints),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
