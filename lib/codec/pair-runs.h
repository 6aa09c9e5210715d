/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pairs of classes that are a few runs of values, by arithmetic on vectors. Included by pair-encode.c for
 * each width of vectors, after it has defined struct classes, struct runs, VECTOR (bytes),
 * PAIRS_OF_RUNS (the function's name) and, for wider vectors than all machines have, PAIRS_TARGET.
 */
#ifndef PAIRS_TARGET
#define PAIRS_TARGET
#endif
#define PAIRS_JOIN_(a, b) a##b
#define PAIRS_JOIN(a, b)  PAIRS_JOIN_(a, b)
#define PAIRS_NAME(part)  PAIRS_JOIN(PAIRS_OF_RUNS, part)

typedef uint8_t PAIRS_NAME(_bytes) __attribute__((vector_size(VECTOR)));
typedef uint16_t PAIRS_NAME(_pairs) __attribute__((vector_size(VECTOR)));

static inline __attribute__((always_inline)) PAIRS_TARGET void
PAIRS_NAME(_of_n)(const struct classes *classes, const struct runs *runs, unsigned n_runs,
		const uint8_t *bytes, size_t n, uint16_t *ret_pairs)
{
	const unsigned k = classes->offset_bits;
	const uint8_t low = (uint8_t)(0xff >> k), spike = (uint8_t)classes->spike;
	const uint8_t spike_class = (uint8_t)(classes->n - 1);

	for (size_t i = 0; i < n; i += VECTOR) {
		PAIRS_NAME(_bytes) value, at, class, of_run, mask;
		PAIRS_NAME(_pairs) pair;

		memcpy(&value, bytes + i, VECTOR);
		class = (PAIRS_NAME(_bytes)){0} + PAIR_ESCAPE;
		for (unsigned run = 0; run < n_runs; run++) {
			at = value - runs->start[run];
			mask = (PAIRS_NAME(_bytes))(at < runs->n[run]);
			/* What comes from the neighbour byte is masked away. */
			of_run = ((PAIRS_NAME(_bytes))((PAIRS_NAME(_pairs))at >> k) & low) + runs->class[run];
			class = (class & ~mask) | (of_run & mask);
		}
		if (classes->spike != NO_SPIKE) {
			mask = (PAIRS_NAME(_bytes))(value == spike);
			class = (class & ~mask) | (spike_class & mask);
		}
		memcpy(&pair, &class, VECTOR);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		pair = pair << 8 | pair >> 8;
#endif
		pair = (pair & 31) | (pair >> 3 & 0x3e0);
		memcpy(ret_pairs + i / 2, &pair, VECTOR);
	}
}

/* Tails that the sample saw with holes are runs of their own; mostly there are one or two. */
static PAIRS_TARGET void PAIRS_OF_RUNS(const struct classes *classes, const struct runs *runs,
				       const uint8_t *bytes, size_t n, uint16_t *ret_pairs)
{
	if (runs->n_runs <= 2)
		PAIRS_NAME(_of_n)(classes, runs, 2, bytes, n, ret_pairs);
	else
		PAIRS_NAME(_of_n)(classes, runs, MAX_RUNS, bytes, n, ret_pairs);
}

#undef VECTOR
#undef PAIRS_OF_RUNS
#undef PAIRS_TARGET
#undef PAIRS_JOIN_
#undef PAIRS_JOIN
#undef PAIRS_NAME
