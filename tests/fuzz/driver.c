/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a target: over files named, or over mutations of its seeds for a count or for seconds. The
 * same seed number gives the same inputs; an input that takes too long ends the process as a crash
 * would, and the number of either is printed before it runs.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "fuzz/fuzz.h"

#define MAX_INPUT   (1U << 20)
#define MAX_SEEDS   64
#define HANG_SECONDS 20

struct input {
	uint8_t *bytes;
	size_t n_bytes;
};

static struct input seeds[MAX_SEEDS];
static unsigned n_seeds;
static uint64_t state;

/* splitmix64, so that an input depends on its number alone. */
static uint64_t next(void)
{
	uint64_t x = state += 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static size_t below(size_t n)
{
	return n ? (size_t)(next() % n) : 0;
}

static void mutate_once(uint8_t *bytes, size_t *n_bytes)
{
	static const uint64_t limits[] = {0, 1, 63, 64, 255, 256, 4095, 65535, INT32_MAX, UINT32_MAX,
					  1ULL << 32, INT64_MAX, 1ULL << 63, UINT64_MAX - 7, UINT64_MAX};
	const struct input *other = &seeds[below(n_seeds)];
	size_t n = *n_bytes, at = below(n), other_at, length;

	if (n == 0)
		return;
	switch (below(7)) {
	case 0:
		bytes[at] ^= (uint8_t)(1U << below(8));
		break;
	case 1:
		bytes[at] = (uint8_t)next();
		break;
	case 2: /* a number at one of its limits */
		length = (size_t)1 << below(4);
		if (length <= n - at)
			memcpy(bytes + at, &limits[below(sizeof(limits) / sizeof(*limits))], length);
		break;
	case 3: /* a number a little off */
		bytes[at] = (uint8_t)(bytes[at] + below(9) - 4);
		break;
	case 4:
		*n_bytes = below(8) ? n - below(n < 64 ? n : 64) : at;
		break;
	case 5: /* a piece of another input */
		other_at = below(other->n_bytes);
		length = below(other->n_bytes - other_at < n - at ? other->n_bytes - other_at : n - at);
		memcpy(bytes + at, other->bytes + other_at, length);
		break;
	default: /* a piece of this one, somewhere else */
		other_at = below(n);
		length = below(n - (at > other_at ? at : other_at));
		memmove(bytes + at, bytes + other_at, length);
		break;
	}
}

static void run_bytes(const uint8_t *bytes, size_t n_bytes)
{
	uint8_t *exact = malloc(n_bytes ? n_bytes : 1);

	if (!exact)
		abort();
	memcpy(exact, bytes, n_bytes);
	(void)alarm(HANG_SECONDS);
	fuzz_one(exact, n_bytes);
	(void)alarm(0);
	free(exact);
}

static void run_number(uint64_t seed, uint64_t number)
{
	static uint8_t bytes[MAX_INPUT];
	const struct input *from;
	size_t n_bytes;

	state = seed * 0x2545f4914f6cdd1dULL ^ number;
	from = &seeds[below(n_seeds)];
	n_bytes = from->n_bytes;
	memcpy(bytes, from->bytes, n_bytes);
	for (size_t i = below(6) + 1; i > 0; i--)
		mutate_once(bytes, &n_bytes);
	if (below(4))
		fuzz_mend(bytes, n_bytes);
	run_bytes(bytes, n_bytes);
}

static int run_file(const char *path)
{
	static uint8_t bytes[MAX_INPUT];
	FILE *file = fopen(path, "rb");
	size_t n_bytes;

	if (!file) {
		(void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 1;
	}
	n_bytes = fread(bytes, 1, sizeof(bytes), file);
	(void)fclose(file);
	run_bytes(bytes, n_bytes);
	return 0;
}

static uint64_t current;

static void said_by_signal(int signal_number)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "signal %d in input %llu\n", signal_number,
			 (unsigned long long)current);

	(void)!write(STDERR_FILENO, line, (size_t)n);
	_exit(99);
}

static uint64_t number_of(const char *text)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || end == text) {
		(void)fprintf(stderr, "not a number: %s\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	uint64_t count = 0, seconds = 0, seed = 1, floor = 0, first = 0, until;
	int option, r = 0;

	while ((option = getopt(argc, argv, "n:t:s:f:i:")) != -1) {
		if (option == 'n')
			count = number_of(optarg);
		else if (option == 't')
			seconds = number_of(optarg);
		else if (option == 's')
			seed = number_of(optarg);
		else if (option == 'f')
			floor = number_of(optarg);
		else if (option == 'i')
			first = number_of(optarg);
		else {
			(void)fprintf(stderr, "usage: %s [-n INPUTS] [-t SECONDS] [-s SEED] [-f FLOOR] "
					      "[-i FIRST] [FILE...]\n"
					      "  -f  fail if fewer inputs were run (with -t)\n"
					      "  -i  start at this input: -n 1 -i N runs input N again\n",
				      argv[0]);
			return 2;
		}
	}
	for (; optind < argc; optind++, count = seconds = 0)
		r |= run_file(argv[optind]);
	if (!count && !seconds)
		return r;
	while (n_seeds < MAX_SEEDS) {
		uint8_t *bytes = malloc(MAX_INPUT);
		size_t n_bytes = bytes ? fuzz_seed(n_seeds, bytes, MAX_INPUT) : 0;

		if (n_bytes == 0) {
			free(bytes);
			break;
		}
		seeds[n_seeds++] = (struct input){bytes, n_bytes};
		run_bytes(bytes, n_bytes);
	}
	if (n_seeds == 0)
		return 1;
	(void)signal(SIGALRM, said_by_signal);
	(void)signal(SIGABRT, said_by_signal);
	until = clock_now_ns() + seconds * 1000000000ULL;
	for (current = first; count ? current - first < count : clock_now_ns() < until; current++)
		run_number(seed, current);
	(void)printf("%llu inputs from seed %llu, %u seeds of the target, floor %llu\n",
		     (unsigned long long)(current - first), (unsigned long long)seed, n_seeds,
		     (unsigned long long)floor);
	for (unsigned i = 0; i < n_seeds; i++)
		free(seeds[i].bytes);
	return current - first < floor;
}
