/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The permutation of spike.h on vectors. Included by spike.c for each width of vectors, after it has defined
 * VECTOR (bytes), SPIKE_NAME() and, for wider vectors than all machines have, SPIKE_TARGET.
 */
#ifndef SPIKE_TARGET
#define SPIKE_TARGET
#endif

typedef int8_t SPIKE_NAME(signed_vector) __attribute__((vector_size(VECTOR)));
typedef uint8_t SPIKE_NAME(bytes_vector) __attribute__((vector_size(VECTOR)));

static SPIKE_TARGET void SPIKE_NAME(close_all)(const uint8_t *bytes, size_t n, uint8_t spike,
					       uint8_t *ret_bytes)
{
	size_t i = 0;

	for (; i + VECTOR <= n; i += VECTOR) {
		SPIKE_NAME(bytes_vector) value;
		SPIKE_NAME(signed_vector) d, is_spike;

		memcpy(&value, bytes + i, VECTOR);
		d = (SPIKE_NAME(signed_vector))(value - spike);
		is_spike = d == 0;
		d -= d < 0; /* what is true is -1 */
		d = (d & ~is_spike) | (FAR & is_spike);
		value = (SPIKE_NAME(bytes_vector))d + spike;
		memcpy(ret_bytes + i, &value, VECTOR);
	}
	for (; i < n; i++)
		ret_bytes[i] = close_one(bytes[i], spike);
}

static SPIKE_TARGET void SPIKE_NAME(open_all)(uint8_t *bytes, size_t n, uint8_t spike)
{
	size_t i = 0;

	for (; i + VECTOR <= n; i += VECTOR) {
		SPIKE_NAME(bytes_vector) value;
		SPIKE_NAME(signed_vector) d, is_spike;

		memcpy(&value, bytes + i, VECTOR);
		d = (SPIKE_NAME(signed_vector))(value - spike);
		is_spike = d == FAR;
		/* Without signs, since -128 would wrap. What is true is -1. */
		value = (SPIKE_NAME(bytes_vector))d + (SPIKE_NAME(bytes_vector))(d <= 0);
		value = (value & (SPIKE_NAME(bytes_vector))~is_spike) + spike;
		memcpy(bytes + i, &value, VECTOR);
	}
	for (; i < n; i++)
		bytes[i] = open_one(bytes[i], spike);
}

#undef VECTOR
#undef SPIKE_NAME
#undef SPIKE_TARGET
