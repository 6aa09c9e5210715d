/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pair codec: what goes in comes out, in every form that this CPU has, and from damaged pages
 * all forms make the same of it, within buffers of the exact size.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "codec/codec.h"
#include "codec/pair.h"

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
	struct pair_decoder *decoder;
	struct pair_encoder *encoder;
};

static int setup(void **state)
{
	static struct fixture fixture;

	fixture.decoder = memory_zalloc(sizeof(*fixture.decoder));
	fixture.encoder = pair_encoder_new();
	*state = &fixture;
	return !fixture.decoder || !fixture.encoder;
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;

	memory_free(fixture->decoder);
	pair_encoder_free(fixture->encoder);
	return 0;
}

/* Into a buffer of the exact size, so that ASan sees what goes past it. */
static int decode(struct fixture *f, enum cpu_path path, unsigned element_bytes,
		  const uint8_t *stored, size_t stored_bytes, uint8_t *dst, size_t n)
{
	uint8_t *exact = memory_alloc(stored_bytes);
	int r;

	memcpy(exact, stored, stored_bytes);
	r = pair_decode(f->decoder, path, element_bytes, exact, stored_bytes, dst, n);
	memory_free(exact);
	return r;
}

static void test_round_trip(void **state)
{
	struct fixture *f = *state;
	const size_t sizes[] = {1024, 1027, 4096, 5000, LARGE, LARGE + 255, CONTAINER_MAX_PAGE_BYTES};

	for (unsigned element_bytes = 1; element_bytes <= 4; element_bytes *= 2) {
		for (enum kind kind = 0; kind < N_KINDS; kind++) {
			for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
				size_t n = sizes[i], capacity = 2 * n + 4096, stored_bytes;
				uint8_t *page = memory_alloc(n), *back = memory_alloc(n);
				uint8_t *stored = memory_alloc(capacity);

				fill(page, n, element_bytes, kind);
				assert_int_equal(pair_encode(f->encoder, element_bytes, page, n,
							     stored, capacity, &stored_bytes), 0);
				for (enum cpu_path path = 0; path <= cpu_path(); path++) {
					memset(back, 0xa5, n);
					assert_int_equal(decode(f, path, element_bytes, stored,
								stored_bytes, back, n), 0);
					assert_memory_equal(page, back, n);
				}
				memory_free(page);
				memory_free(back);
				memory_free(stored);
			}
		}
	}
}

static void compare_forms(struct fixture *f, unsigned element_bytes, const uint8_t *stored,
			  size_t stored_bytes, size_t n)
{
	static uint8_t first[LARGE], other[LARGE];
	int r = decode(f, CPU_PORTABLE, element_bytes, stored, stored_bytes, first, n);

	assert_true(r == 0 || r == CODEC_E_CORRUPT);
	for (enum cpu_path path = 1; path <= cpu_path(); path++) {
		assert_int_equal(decode(f, path, element_bytes, stored, stored_bytes, other, n), r);
		if (r == 0)
			assert_memory_equal(first, other, n);
	}
}

/* Every truncation and every bit of small pages; random damage to large ones. */
static void test_damage(void **state)
{
	struct fixture *f = *state;
	static uint8_t page[LARGE], stored[2 * LARGE];

	for (unsigned element_bytes = 1; element_bytes <= 4; element_bytes *= 2) {
		for (enum kind kind = 0; kind < N_KINDS; kind++) {
			size_t n = (size_t)256 * element_bytes, stored_bytes;

			fill(page, n, element_bytes, kind);
			assert_int_equal(pair_encode(f->encoder, element_bytes, page, n, stored,
						     sizeof(stored), &stored_bytes), 0);
			for (size_t cut = 0; cut < stored_bytes; cut++)
				assert_int_equal(decode(f, cpu_path(), element_bytes, stored, cut,
							stored + LARGE, n), CODEC_E_CORRUPT);
			for (size_t bit = 0; bit < 8 * stored_bytes; bit++) {
				stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
				compare_forms(f, element_bytes, stored, stored_bytes, n);
				stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
			}
			fill(page, LARGE, element_bytes, kind);
			assert_int_equal(pair_encode(f->encoder, element_bytes, page, LARGE, stored,
						     sizeof(stored), &stored_bytes), 0);
			for (int i = 0; i < 40; i++) {
				uint32_t at = random_u32() % (uint32_t)stored_bytes;
				uint8_t kept = stored[at];

				stored[at] = (uint8_t)random_u32();
				compare_forms(f, element_bytes, stored, stored_bytes, LARGE);
				stored[at] = kept;
			}
		}
	}
}

/* No room: the caller stores the page raw. */
static void test_capacity(void **state)
{
	struct fixture *f = *state;
	static uint8_t page[4096], stored[8192], whole[8192];
	size_t n, again;

	fill(page, sizeof(page), 1, TAILS);
	assert_int_equal(pair_encode(f->encoder, 1, page, sizeof(page), whole, sizeof(whole), &n), 0);
	for (size_t capacity = 0; capacity < n; capacity++) {
		uint8_t *exact = memory_alloc(capacity);

		assert_int_equal(pair_encode(f->encoder, 1, page, sizeof(page), exact, capacity, &again),
				 CODEC_E_INCOMPRESSIBLE);
		memory_free(exact);
	}
	assert_int_equal(pair_encode(f->encoder, 1, page, sizeof(page), stored, n, &again), 0);
	assert_int_equal(n, again);
	assert_memory_equal(stored, whole, n);
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
