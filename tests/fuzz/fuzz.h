/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A target is one file with these functions. driver.c mutates its seeds from a seed number and runs
 * it, so that the sanitizers of any compiler do.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Aborts if something is wrong with what became of the bytes. They end where the buffer ends. */
void fuzz_one(const uint8_t *data, size_t n_bytes);

/* Valid input number i, at most `capacity` bytes; 0: there are no more. */
size_t fuzz_seed(unsigned i, uint8_t *buffer, size_t capacity);

/* Gives damaged input the sums that it would be refused for; may do nothing. */
void fuzz_mend(uint8_t *data, size_t n_bytes);

#endif
