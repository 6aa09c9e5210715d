/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that were stored once must decode for ever, on every path. DIR has for each codec
 * NAME.stored, and the bytes that it must give in ELEMENT.raw.
 *
 *   test-golden DIR          decode them
 *   test-golden DIR --write  write those that are not there yet, for a new codec
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "codec/codec.h"

#define PAGE_BYTES 3001U /* every codec has a tail that no element or row fills */

static const char *directory;

/* The page whose elements suit a codec. */
static const char *raw_name(uint32_t id)
{
	switch (id) {
	case CODEC_ZSTD_PLANES_16:
	case CODEC_PAIR_16:
	case CODEC_PACK_16:
		return "16.raw";
	case CODEC_ZSTD_PLANES_32:
	case CODEC_PAIR_32:
	case CODEC_PACK_32:
		return "32.raw";
	default:
		return "8.raw";
	}
}

/* Bytes of the file, or 0. */
static size_t file_read(const char *name, uint8_t *ret_bytes, size_t capacity)
{
	char path[4096];
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "rb");
	if (!file)
		return 0;
	n = fread(ret_bytes, 1, capacity, file);
	fclose(file);
	return n;
}

static void test_decode(void **state)
{
	struct codec_context *context = codec_context_new();
	static uint8_t raw[PAGE_BYTES + 1], stored[2 * PAGE_BYTES], back[PAGE_BYTES];
	enum cpu_path best = cpu_path();

	(void)state;
	assert_non_null(context);
	for (uint32_t id = 0; codec_is_valid(id); id++) {
		char name[64];
		size_t n;

		snprintf(name, sizeof(name), "%s.stored", codec_name(id));
		n = file_read(name, stored, sizeof(stored));
		if (n == 0)
			fail_msg("no %s in %s: write it, and keep it", name, directory);
		assert_int_equal(file_read(raw_name(id), raw, sizeof(raw)), PAGE_BYTES);
		for (enum cpu_path path = 0; path <= best; path++) {
			assert_true(cpu_path_force(path));
			memset(back, 0xa5, sizeof(back));
			assert_int_equal(codec_decode(context, id, stored, n, back, PAGE_BYTES), 0);
			assert_memory_equal(back, raw, PAGE_BYTES);
		}
	}
	(void)cpu_path_force(best);
	codec_context_free(context);
}

static int write_missing(void)
{
	struct codec_context *context = codec_context_new_encoder();
	static uint8_t raw[PAGE_BYTES], stored[2 * PAGE_BYTES];

	for (uint32_t id = 0; context && codec_is_valid(id); id++) {
		char name[64], path[4096];
		FILE *file;
		size_t n;

		snprintf(name, sizeof(name), "%s.stored", codec_name(id));
		if (file_read(name, stored, sizeof(stored)))
			continue;
		if (file_read(raw_name(id), raw, sizeof(raw)) != PAGE_BYTES ||
		    codec_encode(context, id, 1, raw, PAGE_BYTES, stored, sizeof(stored), &n)) {
			fprintf(stderr, "cannot encode %s\n", name);
			return 1;
		}
		snprintf(path, sizeof(path), "%s/%s", directory, name);
		file = fopen(path, "wb");
		if (!file || fwrite(stored, 1, n, file) != n || fclose(file)) {
			fprintf(stderr, "cannot write %s\n", path);
			return 1;
		}
	}
	codec_context_free(context);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode),
	};

	if (argc < 2) {
		fprintf(stderr, "usage: test-golden DIR [--write]\n");
		return 2;
	}
	directory = argv[1];
	if (argc > 2 && strcmp(argv[2], "--write") == 0)
		return write_missing();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
