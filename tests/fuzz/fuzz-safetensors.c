/* SPDX-License-Identifier: Apache-2.0 */
/* The head of a safetensors file, and the index that names the shards of a model. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "fuzz/fuzz.h"
#include "model/safetensors.h"

static int note(void *data, const char *tensor, const char *file)
{
	*(size_t *)data += strlen(tensor) + strlen(file);
	return 0;
}

void fuzz_one(const uint8_t *data, size_t n_bytes)
{
	static int fd = -1;
	struct safetensors st;
	size_t sum = 0;

	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 0) < 0 || io_write_at(fd, data, n_bytes, 0) != 0)
		abort();
	if (safetensors_init(&st, fd, n_bytes) == 0) {
		/* Whatever was taken for a tensor lies in the file. */
		for (uint64_t i = 0; i < st.n_tensors; i++) {
			const struct safetensors_tensor *t = &st.tensors[i];

			if (t->n_bytes > n_bytes || t->offset > n_bytes - t->n_bytes ||
			    st.head_bytes + t->offset + t->n_bytes > n_bytes)
				abort();
		}
		safetensors_deinit(&st);
	}
	(void)safetensors_index_each((const char *)data, n_bytes, note, &sum);
}

size_t fuzz_seed(unsigned i, uint8_t *buffer, size_t capacity)
{
	static const char *const heads[] = {
		"{}",
		"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
		"{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[],"
		"\"data_offsets\":[0,2]},\"a\\u00e9\":{\"dtype\":\"I8\",\"shape\":[0],"
		"\"data_offsets\":[2,2]},\"c\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,3],"
		"\"data_offsets\":[2,5]}}",
	};
	static const char index[] = "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"x.safetensors\","
				    "\"b\":\"y.safetensors\"}}";
	uint64_t n;

	if (i == 3) {
		memcpy(buffer, index, sizeof(index) - 1);
		return sizeof(index) - 1;
	}
	if (i > 3)
		return 0;
	n = strlen(heads[i]);
	memcpy(buffer, &n, 8);
	memcpy(buffer + 8, heads[i], n);
	memset(buffer + 8 + n, 0, 16);
	return 8 + n + (i == 0 ? 0 : i == 1 ? 16 : 5);
}

/* The head's length, half of the time as if the data were as long as before. */
void fuzz_mend(uint8_t *data, size_t n_bytes)
{
	uint64_t n;

	if (n_bytes < 24)
		return;
	n = n_bytes - 8 - (data[9] & 1 ? 16 : 5);
	memcpy(data, &n, 8);
}
