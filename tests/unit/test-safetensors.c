/* SPDX-License-Identifier: Apache-2.0 */
/* Heads written by hand from the format's description: what passes, and in which order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/message.h"
#include "dcmem/dcmem.h"
#include "model/safetensors.h"

static int parse(const char *text, size_t n_data, struct safetensors *ret_st)
{
	size_t n = strlen(text);
	uint8_t length[8] = { (uint8_t)n, (uint8_t)(n >> 8) };
	FILE *file = tmpfile();
	int r;

	assert_non_null(file);
	assert_int_equal(fwrite(length, 1, 8, file), 8);
	assert_int_equal(fwrite(text, 1, n, file), n);
	assert_int_equal(fflush(file), 0);
	assert_int_equal(ftruncate(fileno(file), (off_t)(8 + n + n_data)), 0);
	r = safetensors_init(ret_st, fileno(file), 8 + n + n_data);
	fclose(file);
	return r;
}

static void test_order(void **state)
{
	struct safetensors st;

	assert_int_equal(parse("{\"__metadata__\":{\"format\":\"pt\"},"
			       "\"late\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
			       "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
			       "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}  ",
			       16, &st),
			 0);
	assert_int_equal(st.n_tensors, 3);
	assert_string_equal(st.tensors[0].name, "scalar");
	assert_int_equal(st.tensors[0].n_dims, 0);
	assert_int_equal(st.tensors[0].n_bytes, 4);
	assert_string_equal(st.tensors[1].name, "empty");
	assert_int_equal(st.tensors[1].n_bytes, 0);
	assert_string_equal(st.tensors[2].name, "late");
	assert_int_equal(st.tensors[2].dtype, DCMEM_BF16);
	assert_int_equal(st.tensors[2].dims[1], 3);
	assert_int_equal(st.tensors[2].offset, 4);
	assert_int_equal(st.tensors[2].n_bytes, 12);
	safetensors_deinit(&st);
}

static void test_no_tensors(void **state)
{
	struct safetensors st;

	assert_int_equal(parse("{}", 0, &st), 0);
	assert_int_equal(st.n_tensors, 0);
	safetensors_deinit(&st);
}

static void test_refused_untouched(void **state)
{
	static const char *const texts[] = {
		"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,9]}}",
		"{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}",
		"{\"a\":{\"dtype\":\"U8\",\"shape\":[7],\"data_offsets\":[1,8]}}",
		"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,8]}}",
		"{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,4],\"data_offsets\":[0,8]}}",
		"{\"a\":{\"dtype\":\"U9\",\"shape\":[8],\"data_offsets\":[0,8]}}",
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct safetensors st = { .n_tensors = 4711 };

		message_clear();
		assert_true(parse(texts[i], 8, &st) > 0);
		assert_int_equal(st.n_tensors, 4711);
		assert_non_null(strstr(message_get(), "tensor a"));
	}
}

struct seen {
	unsigned n;
	char last[64];
};

static int note(void *data, const char *tensor, const char *file)
{
	struct seen *seen = data;

	seen->n++;
	snprintf(seen->last, sizeof(seen->last), "%s in %s", tensor, file);
	return strcmp(tensor, "stop") == 0 ? 77 : 0;
}

static int walk(const char *text, struct seen *seen)
{
	return safetensors_index_each(text, strlen(text), note, seen);
}

static void test_index(void **state)
{
	struct seen seen = { 0 };

	assert_int_equal(walk("{\"weight_map\":{\"a\":\"x\",\"b\":\"y\"}}", &seen), 0);
	assert_int_equal(seen.n, 2);
	assert_string_equal(seen.last, "b in y");
	assert_int_equal(walk("{\"weight_map\":{\"stop\":\"x\",\"b\":\"y\"}}", &seen), 77);
	assert_string_equal(seen.last, "stop in x");
	assert_int_equal(walk("{\"weight_map\":{\"a\":1}}", &seen), SAFETENSORS_E_CORRUPT);
	assert_int_equal(walk("{\"weight_map\":[]}", &seen), SAFETENSORS_E_CORRUPT);
	assert_int_equal(walk("[", &seen), SAFETENSORS_E_CORRUPT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_no_tensors),
		cmocka_unit_test(test_refused_untouched),
		cmocka_unit_test(test_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
