/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codecs with a form for each kind of CPU: what goes in comes out, in every form that this one
 * has, and from damaged pages all forms make the same of it, within buffers of the exact size.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "codec/codec.h"
#include "dcmem/container.h"

#define LARGE 65536U

static uint64_t random_state = 88172645463325252ULL;

static uint32_t random_u32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16);
}

enum kind {
	CONSTANT,
	TWO_VALUES,
	NARROW,	 /* bell, a few values */
	MIDDLE,	 /* bell, about 5 bits */
	WIDE,	 /* bell, about 7 bits: raw bits under the classes */
	TAILS,	 /* a narrow bell and anything else now and then: escapes */
	SPARSE,	 /* zeros, or anything */
	SPIKED,	 /* a bell of about 5 bits, half of it set to one value */
	UNIFORM,
	N_KINDS,
};

static uint8_t draw(enum kind kind)
{
	uint32_t sum = 0;

	for (int i = 0; i < 8; i++)
		sum += random_u32() & 0xff;
	switch (kind) {
	case CONSTANT:
		return 7;
	case TWO_VALUES:
		return random_u32() % 10 ? 0x80 : 0x7f;
	case NARROW:
		return (uint8_t)(sum / 128);
	case MIDDLE:
		return (uint8_t)(sum / 24);
	case WIDE:
		return (uint8_t)(sum / 6);
	case TAILS:
		return random_u32() % 40 ? (uint8_t)(sum / 128) : (uint8_t)random_u32();
	case SPARSE:
		return random_u32() % 2 ? 0 : (uint8_t)random_u32();
	case SPIKED:
		return random_u32() % 2 ? 3 : random_u32() % 50 ? (uint8_t)(sum / 20) : (uint8_t)sum;
	default:
		return (uint8_t)random_u32();
	}
}

/* Elements whose high byte, after the rotation, is drawn; the rest is noise. */
static void fill(uint8_t *page, size_t n, unsigned element_bytes, enum kind kind)
{
	for (size_t i = 0; i < n; i++)
		page[i] = (uint8_t)random_u32();
	for (size_t i = 0; i + element_bytes <= n; i += element_bytes) {
		uint8_t high = draw(kind);

		if (element_bytes == 1) {
			page[i] = high;
			continue;
		}
		page[i + element_bytes - 1] = (uint8_t)(high >> 1 | random_u32() << 7);
		page[i + element_bytes - 2] =
			(uint8_t)((page[i + element_bytes - 2] & 0x7f) | high << 7);
	}
}

struct fixture {
	struct codec_context *context;
	enum cpu_path best;
};

static int setup(void **state)
{
	static struct fixture fixture;

	fixture.context = codec_context_new_encoder();
	fixture.best = cpu_path();
	*state = &fixture;
	return !fixture.context;
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;

	(void)cpu_path_force(fixture->best);
	codec_context_free(fixture->context);
	return 0;
}

struct tested {
	uint32_t id;
	unsigned element_bytes;
	size_t least; /* bytes of a page that it takes */
	bool may_refuse; /* what it cannot make smaller */
};

static const struct tested codecs[] = {
	{CODEC_PAIR_8, 1, 256, false},	{CODEC_PAIR_16, 2, 512, false},
	{CODEC_PAIR_32, 4, 1024, false}, {CODEC_PACK_8, 1, 64, true},
	{CODEC_PACK_16, 2, 128, true},	{CODEC_PACK_32, 4, 256, true},
	{CODEC_PAIR_8_SPIKE, 1, 256, false},
};
#define N_CODECS (sizeof(codecs) / sizeof(codecs[0]))

/* 0, or not where the codec may leave this kind to others. */
static int encode(struct fixture *f, const struct tested *codec, enum kind kind,
		  const uint8_t *page, size_t n, uint8_t *stored, size_t capacity, size_t *ret_bytes)
{
	int r = codec_encode(f->context, codec->id, 1, page, n, stored, capacity, ret_bytes);

	if (codec->may_refuse && (kind == UNIFORM || kind == WIDE))
		assert_true(r == 0 || r == CODEC_E_INCOMPRESSIBLE);
	else
		assert_int_equal(r, 0);
	return r;
}

/* Into a buffer of the exact size, so that ASan sees what goes past it. */
static int decode(struct fixture *f, enum cpu_path path, const struct tested *codec,
		  const uint8_t *stored, size_t stored_bytes, uint8_t *dst, size_t n)
{
	uint8_t *exact = memory_alloc(stored_bytes);
	int r;

	memcpy(exact, stored, stored_bytes);
	assert_true(cpu_path_force(path));
	r = codec_decode(f->context, codec->id, exact, stored_bytes, dst, n);
	memory_free(exact);
	return r;
}

static void round_trip(struct fixture *f, const struct tested *codec, enum kind kind, size_t n)
{
	size_t capacity = 2 * n + 4096, stored_bytes;
	uint8_t *page = memory_alloc(n), *back = memory_alloc(n), *stored = memory_alloc(capacity);

	fill(page, n, codec->element_bytes, kind);
	if (encode(f, codec, kind, page, n, stored, capacity, &stored_bytes) == 0) {
		for (enum cpu_path path = 0; path <= f->best; path++) {
			memset(back, 0xa5, n);
			assert_int_equal(decode(f, path, codec, stored, stored_bytes, back, n), 0);
			assert_memory_equal(page, back, n);
		}
	}
	memory_free(page);
	memory_free(back);
	memory_free(stored);
}

static void test_round_trip(void **state)
{
	const size_t sizes[] = {1024, 1027, 4096, 5000, LARGE, LARGE + 255, CONTAINER_MAX_PAGE_BYTES};

	for (unsigned c = 0; c < N_CODECS; c++)
		for (enum kind kind = 0; kind < N_KINDS; kind++)
			for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
				round_trip(*state, &codecs[c], kind, sizes[i]);
}

static void compare_forms(struct fixture *f, const struct tested *codec, const uint8_t *stored,
			  size_t stored_bytes, size_t n)
{
	static uint8_t first[LARGE], other[LARGE];
	int r = decode(f, CPU_PORTABLE, codec, stored, stored_bytes, first, n);

	assert_true(r == 0 || r == CODEC_E_CORRUPT);
	for (enum cpu_path path = 1; path <= f->best; path++) {
		assert_int_equal(decode(f, path, codec, stored, stored_bytes, other, n), r);
		if (r == 0)
			assert_memory_equal(first, other, n);
	}
}

/* Every truncation and every bit of a small page; of wider elements, which are mostly raw, one in 5. */
static void damage_small(struct fixture *f, const struct tested *codec, enum kind kind)
{
	static uint8_t page[LARGE], stored[2 * LARGE], back[LARGE];
	size_t n = (size_t)256 * codec->element_bytes, stored_bytes;

	fill(page, n, codec->element_bytes, kind);
	if (encode(f, codec, kind, page, n, stored, sizeof(stored), &stored_bytes))
		return;
	for (size_t cut = 0; cut < stored_bytes; cut++)
		assert_int_equal(decode(f, f->best, codec, stored, cut, back, n), CODEC_E_CORRUPT);
	for (size_t bit = 0; bit < 8 * stored_bytes; bit += codec->element_bytes == 1 ? 1 : 5) {
		stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
		compare_forms(f, codec, stored, stored_bytes, n);
		stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
}

/* Random damage to a large one. */
static void damage_large(struct fixture *f, const struct tested *codec, enum kind kind)
{
	static uint8_t page[LARGE], stored[2 * LARGE];
	size_t stored_bytes;

	fill(page, LARGE, codec->element_bytes, kind);
	if (encode(f, codec, kind, page, LARGE, stored, sizeof(stored), &stored_bytes))
		return;
	for (int i = 0; i < 40; i++) {
		uint32_t at = random_u32() % (uint32_t)stored_bytes;
		uint8_t kept = stored[at];

		stored[at] = (uint8_t)random_u32();
		compare_forms(f, codec, stored, stored_bytes, LARGE);
		stored[at] = kept;
	}
}

static void test_damage(void **state)
{
	for (unsigned c = 0; c < N_CODECS; c++) {
		for (enum kind kind = 0; kind < N_KINDS; kind++) {
			damage_small(*state, &codecs[c], kind);
			damage_large(*state, &codecs[c], kind);
		}
	}
}

/* No room, or less than it takes: the caller stores the page raw. */
static void test_capacity(void **state)
{
	struct fixture *f = *state;
	static uint8_t page[4096], stored[8192], whole[8192];

	for (unsigned c = 0; c < N_CODECS; c++) {
		const struct tested *codec = &codecs[c];
		size_t n, again;

		fill(page, sizeof(page), codec->element_bytes, TAILS);
		assert_int_equal(codec_encode(f->context, codec->id, 1, page, sizeof(page), whole,
					      sizeof(whole), &n), 0);
		for (size_t capacity = 0; capacity < n; capacity++) {
			uint8_t *exact = memory_alloc(capacity);

			assert_int_equal(codec_encode(f->context, codec->id, 1, page, sizeof(page),
						      exact, capacity, &again),
					 CODEC_E_INCOMPRESSIBLE);
			memory_free(exact);
		}
		assert_int_equal(codec_encode(f->context, codec->id, 1, page, sizeof(page), stored, n,
					      &again), 0);
		assert_int_equal(n, again);
		assert_memory_equal(stored, whole, n);
		assert_int_equal(codec_encode(f->context, codec->id, 1, page, codec->least - 1,
					      stored, sizeof(stored), &n), CODEC_E_INCOMPRESSIBLE);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_capacity, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
